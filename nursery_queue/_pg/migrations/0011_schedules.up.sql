-- Schedules: rules that enqueue a task at instants. A worker that finds one due works out its ticks,
-- stores their tasks and moves it on, in one transaction.

-- Whether this has the form of a cron expression. Whether its numbers are right, and whether there
-- is such a day, is for the worker to say.
create function nursery_queue.is_cron(expression text) returns boolean
language sql immutable parallel safe
return expression ~* (
    '^\s*(@(hourly|daily|midnight|weekly|monthly|yearly|annually)|'
    -- minute and hour
    || repeat('(\*|\d{1,2}(-\d{1,2})?)(/\d{1,2})?(,(\*|\d{1,2}(-\d{1,2})?)(/\d{1,2})?)*\s+', 2)
    -- day of month
    || '(\*|LW?|\d{1,2}(-\d{1,2})?)(/\d{1,2})?(,(\*|LW?|\d{1,2}(-\d{1,2})?)(/\d{1,2})?)*\s+'
    -- month
    || '(\*|(\d{1,2}|[a-z]{3})(-(\d{1,2}|[a-z]{3}))?)(/\d{1,2})?'
    || '(,(\*|(\d{1,2}|[a-z]{3})(-(\d{1,2}|[a-z]{3}))?)(/\d{1,2})?)*\s+'
    -- day of week
    || '(\*|0?\dL|(0?\d|[a-z]{3})(#0?[1-5]|-(0?\d|[a-z]{3}))?)(/\d{1,2})?'
    || '(,(\*|0?\dL|(0?\d|[a-z]{3})(#0?[1-5]|-(0?\d|[a-z]{3}))?)(/\d{1,2})?)*)\s*$');

create table nursery_queue.schedule (
    name         text primary key check (name <> ''),
    constraint schedule_name_of_at_most_255_characters check (length(name) <= 255),
    -- The App that declares it. Null: made at run time, and fired by any worker that knows its type.
    app          text check (app <> ''),
    cron         text,
    tz           text not null default 'UTC',
    every        double precision check (every >= 1 and every <= 3155760000), -- seconds
    anchor       timestamptz not null default '1970-01-01 00:00+00'
                 check (anchor between '0002-01-01 00:00+00' and '9998-12-31 00:00+00'),
    constraint schedule_has_cron_or_every check (num_nonnulls(cron, every) = 1),
    -- What its tasks get; as in the table task. Null queue and priority: as declared at each tick.
    task_type    text not null check (task_type <> ''),
    constraint schedule_task_type_of_at_most_255_characters check (length(task_type) <= 255),
    params       jsonb not null default '{}' check (jsonb_typeof(params) = 'object'),
    queue        text check (queue <> ''),
    constraint schedule_queue_of_at_most_255_characters check (length(queue) <= 255),
    priority     integer,
    key          text default e'\x01' check (octet_length(key) between 1 and 200), -- left out
    run_after    double precision not null default 0
                 check (run_after >= 0 and run_after <= 3155760000),
    max_attempts integer check (max_attempts >= 1),
    backoff      jsonb check (nursery_queue.is_backoff(backoff)),
    timeout      double precision check (timeout > 0 and timeout <> 'NaN'),
    keep_for     double precision check (keep_for >= 0 and keep_for <= 3155760000),
    on_complete  jsonb default 'null'
                 check (on_complete is null or on_complete = 'null'
                        or nursery_queue.is_completion(on_complete)),
    context      jsonb,
    misfire      text not null default 'latest' check (misfire in ('latest', 'skip', 'all')),
    overlap      text not null default 'allow' check (overlap in ('allow', 'skip', 'cancel')),
    jitter       double precision not null default 0 check (jitter >= 0 and jitter <= 3155760000),
    paused       boolean not null default false,
    -- From here on it is the workers' to write.
    -- Null: not worked out yet, or never. One instant that a worker cannot read would keep all
    -- schedules from firing.
    next_at      timestamptz
                 check (next_at between '0002-01-01 00:00+00' and '9998-12-31 00:00+00'),
    last_tick    timestamptz
                 check (last_tick between '0002-01-01 00:00+00' and '9998-12-31 00:00+00'),
    last_task_id bigint,
    earlier      bigint[] not null default '{}', -- tasks that had not ended at a `trigger`
    fired        bigint not null default 0,
    skipped      bigint not null default 0,
    error        text, -- why it could not fire the last time
    since        timestamptz not null default nursery_queue.now() -- ticks behind this are to come
                 check (since between '0002-01-01 00:00+00' and '9998-12-31 00:00+00'),
    resumed_at   timestamptz -- when its last pause ended
                 check (resumed_at between '0002-01-01 00:00+00' and '9998-12-31 00:00+00'),
    look_at      timestamptz not null default nursery_queue.now() -- when it is due
                 check (look_at between '0002-01-01 00:00+00' and '9998-12-31 00:00+00'),
    declared     jsonb, -- what code declares; an edited row is as it is until this changes
    -- A worker of its App has started that does not declare it: it is to be asked whether another
    -- one does. And none did when it was due last: it is out of the way until one declares it.
    dropped      boolean not null default false,
    orphaned     boolean not null default false
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
comment on table nursery_queue.schedule is 'Rules that enqueue a task at instants.';
create index schedule_due on nursery_queue.schedule (look_at) where not paused and not orphaned;
-- None is behind the present, unless the clock has been set back.
create index schedule_since on nursery_queue.schedule (since) where not paused and not orphaned;

create table nursery_queue.tick (
    schedule   text not null,
    tick       timestamptz not null,
    expires_at timestamptz not null,
    primary key (schedule, tick)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
comment on table nursery_queue.tick is
    'Instants of schedules that have had their task: no instant gets another one.';
create index tick_expires on nursery_queue.tick (expires_at);

-- Checks what cannot be a schedule, and has it looked at anew when it is due at other instants.
create function nursery_queue.check_schedule() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if new.cron is not null and not nursery_queue.is_cron(new.cron) then
        raise check_violation using
            message = format('schedule %L: %L is no cron expression', new.name, new.cron),
            hint = 'Write minute, hour, day of month, month, day of week: 0 3 * * MON-FRI.';
    end if;
    if new.tz !~ '^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$' then
        raise check_violation using
            message = format('schedule %L: %L is no time zone', new.name, new.tz),
            hint = 'Write its name in the tz database, such as Europe/Berlin.';
    end if;
    if tg_op = 'INSERT' or (new.cron, new.tz, new.every, new.anchor)
                           is distinct from (old.cron, old.tz, old.every, old.anchor) then
        -- A tick at this very instant does not fire.
        new.since := nursery_queue.now();
        new.look_at := nursery_queue.now();
        new.next_at := null;
        new.error := null;
    elsif old.error is not null then -- it may fire now
        new.look_at := nursery_queue.now();
    end if;
    if tg_op = 'UPDATE' and old.paused and not new.paused then
        new.resumed_at := nursery_queue.now();
    end if;
    return new;
end
$$;

create trigger check_schedule
    before insert or update of name, app, cron, tz, every, anchor, task_type, params, queue,
                               priority, key, max_attempts, backoff, timeout, keep_for,
                               on_complete, context, paused, declared
    on nursery_queue.schedule
    for each row execute function nursery_queue.check_schedule();

-- Wakes the workers.
create function nursery_queue.ring_schedule() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_notify('nursery_queue_schedule', '');
    return null;
end
$$;

create trigger ring_schedule
    after insert or update of name, app, cron, tz, every, anchor, task_type, paused, misfire
    on nursery_queue.schedule
    for each statement execute function nursery_queue.ring_schedule();

-- Stores the tasks of ticks, and answers their ids: for each a name, an instant (null: none, as of a
-- `trigger`) and when it is due (null: now).
create function nursery_queue.store_ticks(
    schedules text[], ticks timestamptz[], run_ats timestamptz[]
) returns table (id bigint, schedule text, tick timestamptz)
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    stored bigint;
begin
    return query
    insert into nursery_queue.task as made
           (task_type, params, queue, priority, key, run_at, max_attempts, backoff, timeout,
            keep_for, on_complete, context, schedule, tick)
    select task_type, params, queue, priority, key,
           coalesce(due.run_at, nursery_queue.now()) + make_interval(secs => run_after),
           max_attempts, backoff, timeout, keep_for, on_complete, context, name, due.tick
      from unnest(schedules, ticks, run_ats) with ordinality
           as due (schedule, tick, run_at, position)
      join nursery_queue.schedule as known on known.name = due.schedule
     order by due.position
    returning made.id, made.schedule, made.tick;
    get diagnostics stored = row_count;
    perform nursery_queue.all_stored(stored, cardinality(schedules));
end
$$;

-- Notes ticks, and answers those that had not been noted.
create function nursery_queue.note_ticks(schedules text[], ticks timestamptz[])
returns table (schedule text, tick timestamptz)
language sql set search_path = pg_catalog, pg_temp
as $$
    insert into nursery_queue.tick as noted (schedule, tick, expires_at)
    select due.schedule, due.tick,
           greatest(due.tick, nursery_queue.now()) + interval '30 days'
      from unnest(schedules, ticks) as due (schedule, tick)
     order by due.schedule, due.tick
        on conflict do nothing
    returning noted.schedule, noted.tick
$$;

-- Carries out what was decided of schedules whose rows the caller has locked: stores the tasks of
-- their ticks, unless those have had one, and moves them on. Answers how many were stored. Waits for
-- nobody.
create function nursery_queue.fire(firings json) returns integer
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
    -- An open transaction may hold the task that is to be cancelled, or what a trigger of the
    -- application's wants: then the others fire without that schedule.
    set lock_timeout = '100ms'
as $$
#variable_conflict use_column
declare
    names text[];
    ticks timestamptz[];
    run_ats timestamptz[];
    previous bigint[];
    stored json;
begin
    select array_agg(due.name order by due.tick, due.name),
           array_agg(due.tick order by due.tick, due.name),
           array_agg(due.run_at order by due.tick, due.name)
      into names, ticks, run_ats
      from (select name, each.at as tick, each.run_at
              from json_to_recordset(firings) as firing (name text, ticks json),
                   json_to_recordset(firing.ticks) as each (at timestamptz, run_at timestamptz)
           ) as due
      join nursery_queue.note_ticks(
               array(select name
                       from json_to_recordset(firings) as firing (name text, ticks json),
                            json_to_recordset(firing.ticks) as each (at timestamptz)),
               array(select each.at
                       from json_to_recordset(firings) as firing (name text, ticks json),
                            json_to_recordset(firing.ticks) as each (at timestamptz))
           ) as noted on noted.schedule = due.name and noted.tick = due.tick;
    if names is not null then
        select json_agg(made) into stored
          from (select schedule, count(*) as tasks, max(tick) as last, max(id) as last_id
                  from nursery_queue.store_ticks(names, ticks, run_ats)
                 group by schedule) as made;
    end if;
    select array_agg(before.id order by before.id) into previous
      from json_to_recordset(firings) as firing (name text, cancels boolean)
      join nursery_queue.schedule using (name)
     cross join unnest(nursery_queue.unfinished(earlier || last_task_id)) as before (id)
     where firing.cancels and name = any(names);
    update nursery_queue.schedule as known
       set since = firing.since,
           next_at = firing.next_at,
           look_at = firing.look_at,
           skipped = known.skipped + firing.skipped,
           error = firing.error,
           fired = known.fired + coalesce(made.tasks, 0),
           last_tick = greatest(known.last_tick, made.last),
           last_task_id = coalesce(made.last_id, known.last_task_id),
           earlier = case when made.last_id is null then known.earlier else '{}' end
      from json_to_recordset(firings)
               as firing (name text, since timestamptz, next_at timestamptz, look_at timestamptz,
                          skipped bigint, error text)
      left join json_to_recordset(coalesce(stored, '[]'))
               as made (schedule text, tasks bigint, last timestamptz, last_id bigint)
             on made.schedule = firing.name
     where known.name = firing.name;
    if previous is not null then
        perform nursery_queue.cancel_many(previous);
    end if;
    return coalesce(cardinality(names), 0);
end
$$;

-- Those of the tasks that have not ended.
create function nursery_queue.unfinished(ids bigint[]) returns bigint[]
language sql stable set search_path = pg_catalog, pg_temp
as $$
    -- Looked up one by one: as `exists` they may be planned as a walk through all tasks.
    select coalesce(array_agg(id), '{}') from unnest(ids) as wanted (id)
     where (select true from nursery_queue.task where task.id = wanted.id) is not null
       and (select true from nursery_queue.finished where task_id = wanted.id) is null
$$;

-- Stores a task of a schedule here and now, which stands for no tick. Null: there is none.
create function nursery_queue.trigger_schedule(name text) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    stored bigint;
begin
    perform from nursery_queue.schedule as known
      where known.name = trigger_schedule.name for update;
    if not found then
        return null;
    end if;
    select id into stored
      from nursery_queue.store_ticks(array[trigger_schedule.name], array[null::timestamptz],
                                     array[null::timestamptz]);
    update nursery_queue.schedule as known
       set last_task_id = stored,
           earlier = nursery_queue.unfinished(known.earlier || known.last_task_id)
     where known.name = trigger_schedule.name;
    return stored;
end
$$;

-- Stores tasks for ticks that have had none, whatever else the schedule says; with dry_run it only
-- counts them. Answers how many; null: there is no such schedule.
create function nursery_queue.backfill(name text, instants timestamptz[], dry_run boolean)
returns integer
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    names text[];
    fresh timestamptz[];
    newest timestamptz;
begin
    perform from nursery_queue.schedule as known
      where known.name = backfill.name for update;
    if not found then
        return null;
    end if;
    if dry_run then
        select array_agg(due.tick) into fresh from unnest(instants) as due (tick)
         where not exists (select from nursery_queue.tick as noted
                            where noted.schedule = backfill.name and noted.tick = due.tick);
        return coalesce(cardinality(fresh), 0);
    end if;
    select array_agg(noted.schedule order by noted.tick), array_agg(noted.tick order by noted.tick)
      into names, fresh
      from nursery_queue.note_ticks(array_fill(backfill.name, array[cardinality(instants)]),
                                    instants) as noted;
    if fresh is null then
        return 0;
    end if;
    select max(tick) into newest
      from nursery_queue.store_ticks(names, fresh,
                                     array_fill(null::timestamptz, array[cardinality(fresh)]));
    update nursery_queue.schedule as known
       set fired = fired + cardinality(fresh), last_tick = greatest(last_tick, newest)
     where known.name = backfill.name;
    return cardinality(fresh);
end
$$;

-- Whether a worker of this App lives that declares this schedule.
create function nursery_queue.is_declared(app text, name text) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select exists (select from nursery_queue.worker
                    where worker.app = is_declared.app and not dead
                      and heartbeat_at >= nursery_queue.now() - make_interval(secs => lease)
                      and is_declared.name = any(schedules))
$$;

-- Stores schedules as columns of their table, where the code's declaration has changed; one that
-- another App declares stays as it is, unless no code declares it any more.
create function nursery_queue.store_schedules(owner text, declared json) returns void
language sql set search_path = pg_catalog, pg_temp
as $$
    insert into nursery_queue.schedule as known (
           name, app, cron, tz, every, anchor, task_type, params, queue, priority, key, run_after,
           max_attempts, backoff, timeout, keep_for, on_complete, context, misfire, overlap, jitter,
           paused, declared)
    select each.name, owner, each.cron, each.tz, each.every,
           coalesce(each.anchor, '1970-01-01 00:00+00'), each.task_type, each.params::jsonb,
           each.queue, each.priority, each.key, each.run_after, each.max_attempts, each.backoff::jsonb,
           each.timeout, each.keep_for, each.on_complete::jsonb, each.context::jsonb, each.misfire,
           each.overlap, each.jitter, each.paused, item.declaration::jsonb
      from rows from (json_array_elements(store_schedules.declared),
                      json_to_recordset(store_schedules.declared)
                      as (name text, cron text, tz text, every double precision,
                          anchor timestamptz, task_type text, params text, queue text,
                          priority integer, key text, run_after double precision,
                          max_attempts integer,
                          backoff text, timeout double precision, keep_for double precision,
                          on_complete text, context text, misfire text, overlap text,
                          jitter double precision, paused boolean))
           as item (declaration, name, cron, tz, every, anchor, task_type, params, queue, priority,
                    key, run_after, max_attempts, backoff, timeout, keep_for, on_complete, context,
                    misfire, overlap, jitter, paused)
     cross join lateral (select item.*) as each
     order by each.name
        on conflict (name) do update
       set (app, cron, tz, every, anchor, task_type, params, queue, priority, key, run_after,
            max_attempts, backoff, timeout, keep_for, on_complete, context, misfire, overlap,
            jitter, declared)
         = (excluded.app, excluded.cron, excluded.tz, excluded.every, excluded.anchor,
            excluded.task_type, excluded.params, excluded.queue, excluded.priority,
            excluded.key, excluded.run_after, excluded.max_attempts, excluded.backoff,
            excluded.timeout, excluded.keep_for, excluded.on_complete, excluded.context, excluded.misfire,
            excluded.overlap, excluded.jitter, excluded.declared),
           -- What an operator has paused stays so, unless that is what has been declared anew.
           paused = case when known.declared -> 'paused' = excluded.declared -> 'paused'
                         then known.paused else excluded.paused end
     where (known.app is null or known.app = excluded.app)
           and known.declared is distinct from excluded.declared
        or known.orphaned and known.app <> excluded.app
$$;

-- Stores what the code of a worker that has started declares, and notes which schedules of its App
-- it does not. Answers the names that could not be stored, and why: another App has one, or the
-- table refuses it; null: a transaction holds its row, which is left as it is.
create function nursery_queue.declare_schedules(
    worker uuid, owner text, names text[], types text[], declared json
) returns table (name text, problem text)
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    each json;
    mixed boolean;
    held text[];
begin
    -- One worker at a time: so two that start at once cannot wait for each other's rows.
    perform pg_advisory_xact_lock(hashtextextended('nursery_queue.declare_schedules', 0));
    -- Nor does one that edits a row keep the others from being stored and fired.
    perform set_config('lock_timeout', '100ms', true); -- for what we cannot see yet
    with free as materialized (
        select known.name from nursery_queue.schedule as known
         where known.name = any(names) or known.app = owner
         order by known.name for update skip locked
    )
    select coalesce(array_agg(known.name), '{}') into held
      from nursery_queue.schedule as known
     where (known.name = any(names) or known.app = owner)
       and known.name not in (select free.name from free);
    declared := (select json_agg(item) from json_array_elements(declared) as item
                  where item ->> 'name' <> all(held));
    begin
        perform nursery_queue.store_schedules(owner, declared);
    exception when others then
        if nursery_queue.passes(sqlstate) and sqlstate <> '55P03' then
            raise;
        end if;
        for each in select * from json_array_elements(declared) loop
            begin
                perform nursery_queue.store_schedules(owner, json_build_array(each));
            exception
                when lock_not_available then
                    held := held || (each ->> 'name');
                when others then
                    if nursery_queue.passes(sqlstate) then
                        raise;
                    end if;
                    name := each ->> 'name';
                    problem := sqlerrm;
                    return next;
            end;
        end loop;
    end;
    -- While other code of this App runs, each of its schedules may be declared by some of them.
    mixed := exists (select from nursery_queue.worker as other
                      where other.app = owner and other.id <> declare_schedules.worker
                        and not other.dead
                        and other.heartbeat_at
                            >= nursery_queue.now() - make_interval(secs => other.lease)
                        and other.schedules is distinct from names);
    update nursery_queue.schedule as known
       set dropped = mixed, orphaned = false
     where known.app = owner and known.name = any(names) and known.name <> all(held)
       and (known.orphaned or known.dropped <> mixed);
    update nursery_queue.schedule as known
       set dropped = true
     where known.app = owner and known.name <> all(names) and known.name <> all(held)
       and not known.dropped;
    update nursery_queue.schedule as known
       set look_at = nursery_queue.now()
     where known.name in (select waiting.name from nursery_queue.schedule as waiting
                           where waiting.app is null and waiting.error is not null
                             and waiting.task_type = any(types)
                             for update skip locked);
    return query select unnest(held), null::text;
    return query
    select known.name, format('the App %L has a schedule of this name', known.app)
      from nursery_queue.schedule as known
     where known.name = any(names) and known.name <> all(held) and known.app <> owner;
end
$$;
