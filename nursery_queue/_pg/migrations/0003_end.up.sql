-- How tasks end other than by a worker, and how other tasks are told of any end.

-- Returns how a task ended, in the form that the task which tells of it gets.
create function nursery_queue.ending(
    state text, result jsonb, error_type text, error_message text, while_running boolean
) returns jsonb
language sql immutable parallel safe
return case state
    when 'succeeded' then jsonb_build_object('status', state, 'value', result)
    when 'failed' then jsonb_build_object('status', state, 'error_type', error_type,
                                          'error', error_type || ': ' || error_message)
    else jsonb_build_object('status', state, 'reason',
             case when while_running then 'cancelled while running'
                                     else 'cancelled while waiting' end)
    end;

create table nursery_queue.untold (
    task_id       bigint primary key,
    on_complete   jsonb not null,
    error_message text not null,
    noted_at      timestamptz not null default nursery_queue.now()
);
comment on table nursery_queue.untold is
    'Ends of which no task tells, since the one that on_complete asks for was refused.';

-- Whether an error passes with time, so that the whole call is to be tried again; and whether it is
-- about the row that was to be written.
create function nursery_queue.passes(state text) returns boolean
language sql immutable parallel safe
return state ~ '^(08|25|40|53|55P03|57)';
create function nursery_queue.is_of_row(state text) returns boolean
language sql immutable parallel safe
return left(state, 2) in ('21', '22', '23', '44', '54', 'P0');

-- Stores the tasks that tell how others have ended, all or none. Columns left out are as their type
-- declares.
create function nursery_queue.tell(
    ids bigint[], on_completes jsonb[], contexts jsonb[], endings jsonb[]
) returns void
language sql set search_path = pg_catalog, pg_temp
as $$
    insert into nursery_queue.task (task_type, params, queue, priority, run_at, max_attempts,
                                    backoff, timeout, keep_for, on_complete, context, completes, key)
    select asked ->> 'task_type',
           jsonb_build_object('task_id', id, 'context', context, 'result', ending),
           asked ->> 'queue',
           (asked ->> 'priority')::numeric::integer,
           nursery_queue.now()
               + make_interval(secs => coalesce((asked ->> 'run_after')::double precision, 0)),
           (asked ->> 'max_attempts')::numeric::integer,
           asked -> 'backoff',
           (asked ->> 'timeout')::double precision,
           (asked ->> 'keep_for')::double precision,
           case when asked ? 'on_complete' then nullif(asked -> 'on_complete', 'null')
                else 'null' end,
           asked -> 'context',
           id,
           case when asked ? 'key' then asked ->> 'key' else e'\x01' end
      from unnest(ids, on_completes, contexts, endings) as ended (id, asked, context, ending)
     order by id
$$;

-- Whether an addition of the user's to the table of tasks may refuse one of our rows: a trigger, a
-- constraint, an index, a policy or a column. In doubt it may: then an end costs a subtransaction
-- more (tests/pg/test_maintenance.py).
create function nursery_queue.task_may_refuse() returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select exists (select from pg_trigger
                     join pg_proc on pg_proc.oid = tgfoid
                    where tgrelid = 'nursery_queue.task'::regclass and not tgisinternal
                      and pronamespace <> 'nursery_queue'::regnamespace)
        or exists (select from pg_constraint
                    where conrelid = 'nursery_queue.task'::regclass
                      and (contype = 'f'
                           or contype = 'c' and conname !~ ('^task_(task_type|params|queue|key'
                               || '|run_at|created_at|max_attempts|backoff|timeout|keep_for'
                               || '|dedup_key|dedup_for|on_complete|context|tick)'
                               || '_(check|of_(at_most|1_to)_.*|needs_.*)$')))
        -- An expression or a condition may raise; and a value may be too long for any index.
        or exists (select from pg_index
                    where indrelid = 'nursery_queue.task'::regclass and not indisprimary)
        or exists (select from pg_class
                    where oid = 'nursery_queue.task'::regclass and relrowsecurity)
        or exists (select from pg_attribute
                    where attrelid = 'nursery_queue.task'::regclass and attnum > 1
                      and not attisdropped
                      and (attnotnull
                           and attname <> all(array['task_type', 'params', 'queue', 'priority',
                                                    'run_at', 'created_at'])
                           or attname <> all(array['task_type', 'params', 'queue', 'priority',
                                                   'key', 'run_at', 'created_at', 'max_attempts',
                                                   'backoff', 'timeout', 'keep_for', 'dedup_key',
                                                   'dedup_for', 'on_complete', 'context',
                                                   'completes', 'schedule', 'tick'])))
$$;

-- Stores the tasks that tell how others have ended. Called in the same statement as that end, which
-- does not depend on it: a refusal is noted, unless the ended task is not kept, and answered, by id
-- of the ended task; null: there was none.
create function nursery_queue.complete(
    ids bigint[], on_completes jsonb[], contexts jsonb[], endings jsonb[],
    kept boolean[] default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    each record;
    problem text;
    refused jsonb;
begin
    -- Mostly nothing can go wrong, and the price of a subtransaction is saved.
    if pg_column_size(contexts) + pg_column_size(endings) < 50000000
       and not nursery_queue.task_may_refuse()
       -- A declared key may be refused: the context, for instance, need not be a text.
       and not exists (select from nursery_queue.task_type as told
                        where told.key_parameter is not null
                          and told.name in (select asked ->> 'task_type'
                                              from unnest(on_completes) as asked)) then
        perform nursery_queue.tell(ids, on_completes, contexts, endings);
        return null;
    end if;
    begin
        perform nursery_queue.tell(ids, on_completes, contexts, endings);
        return null;
    exception when others then
        if nursery_queue.passes(sqlstate) then
            raise;
        end if;
    end;
    for each in select * from unnest(ids, on_completes, contexts, endings, kept)
                              as ended (id, asked, context, ending, kept)
                 order by id
    loop
        begin
            perform nursery_queue.tell(array[each.id], array[each.asked],
                                       array[each.context], array[each.ending]);
        exception when others then
            if nursery_queue.passes(sqlstate) then
                raise;
            end if;
            get stacked diagnostics problem = message_text;
            refused := coalesce(refused, '{}') || jsonb_build_object(each.id::text, problem);
            insert into nursery_queue.untold (task_id, on_complete, error_message)
            select each.id, each.asked, problem where coalesce(each.kept, true)
                on conflict (task_id) do update
               set on_complete = excluded.on_complete, error_message = excluded.error_message,
                   noted_at = excluded.noted_at;
        end;
    end loop;
    return refused;
end
$$;

-- Asks for tasks to be cancelled. Waiting: it never starts. Running: its worker is told; with
-- running => false it may finish, but is not tried again. Answers how many of them were live.
create function nursery_queue.cancel_many(ids bigint[], running boolean default true)
returns integer
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
    set plan_cache_mode = force_generic_plan -- to plan it takes longer than to run it
as $$
declare
    rest bigint[] := ids;
    stopped bigint[];
    asked bigint[];
    unkept bigint[];
    told integer;
    done integer := 0;
begin
    perform set_config('nursery_queue.tidy', 'own', true); -- see forget()
    -- A task may move on while we look at one place after the other: then look again.
    while rest is not null loop
        -- Positions are looked up one by one: a join may be planned as a walk through all of
        -- them (offset 0).
        with wanted as materialized (
            select task.id, task.queue, task.priority, task.key, task.task_type,
                   coalesce(task.keep_for, -- no worker is asked: as the newest has declared
                            (select declared.keep_for from nursery_queue.task_type as declared
                              where declared.name = task.task_type), 86400) as keep_for,
                   task.on_complete, task.context
              from nursery_queue.task
             where task.id = any(rest)
        ), not_ready as (
            delete from nursery_queue.ready
             where ctid = any(array(
                select found.place
                  from wanted
                 cross join lateral (select ready.ctid as place from nursery_queue.ready
                                      where ready.queue = wanted.queue
                                        and ready.task_type = wanted.task_type
                                        and ready.priority = wanted.priority
                                        and ready.key = coalesce(wanted.key, '')
                                        and ready.task_id = wanted.id offset 0) as found))
            returning task_id, attempt, epoch, lost
        ), not_parked as (
            delete from nursery_queue.parked
             where ctid = any(array(
                select found.place
                  from wanted
                 cross join lateral (select parked.ctid as place from nursery_queue.parked
                                      where parked.task_type = wanted.task_type
                                        and parked.queue = wanted.queue
                                        and parked.priority = wanted.priority
                                        and parked.task_id = wanted.id offset 0) as found))
            returning task_id, attempt, epoch, lost
        ), not_scheduled as (
            delete from nursery_queue.scheduled where task_id = any(rest)
            returning task_id, attempt, epoch, lost
        ), ended as materialized (
            select wanted.*, place.attempt, place.epoch, place.lost
              from (select * from not_ready union all
                    select * from not_parked union all
                    select * from not_scheduled) as place
              join wanted on wanted.id = place.task_id
        ), kept as (
            insert into nursery_queue.finished (task_id, state, attempt, epoch, lost,
                                                finished_at, expires_at)
            select id, 'cancelled', attempt, epoch, lost, nursery_queue.now(),
                   nursery_queue.now() + make_interval(secs => keep_for)
              from ended
             where keep_for > 0
        ), forgotten as (
            delete from nursery_queue.task
             where id = any(array(select id from ended where keep_for = 0))
        ), forgotten_attempts as (
            delete from nursery_queue.attempt
             where task_id = any(array(select id from ended where keep_for = 0))
        ), freed as (
            delete from nursery_queue.dedup
             where ctid = any(array(
                select ctid from nursery_queue.dedup
                 where task_id = any(array(select id from ended))
                   and coalesce(until <= nursery_queue.now(), true)
                   for update skip locked)) -- see nursery_queue.hold
        ), told as materialized (
            select nursery_queue.complete(
                       array_agg(id), array_agg(on_complete), array_agg(context),
                       array_agg(nursery_queue.ending('cancelled', null, null, null, false)),
                       array_agg(keep_for is distinct from 0))
              from ended
             where on_complete is not null
            having count(*) > 0
        ), warned as (
            update nursery_queue.running
               set cancel_requested_at = coalesce(cancel_requested_at, nursery_queue.now()),
                   cancel_interrupts = cancel_many.running
                                       or (cancel_requested_at is not null and cancel_interrupts)
             where task_id = any(rest)
            returning task_id
        )
        select array(select id from ended), array(select task_id from warned),
               array(select id from ended where keep_for = 0), (select count(*) from told)
          into stopped, asked, unkept, told;
        if unkept <> '{}' then
            perform nursery_queue.forget_streams(unkept);
        end if;
        if stopped <> '{}' then
            perform pg_notify('nursery_queue_finished', '');
        end if;
        if asked <> '{}' then
            perform pg_notify('nursery_queue_cancel', '');
        end if;
        done := done + cardinality(stopped) + cardinality(asked);
        select array_agg(missed.id) into rest
          from (select unnest(rest) except select unnest(stopped || asked)) as missed (id)
         cross join lateral (select task_status.state from nursery_queue.task_status
                              where task_status.id = missed.id offset 0) as now
         where now.state in ('scheduled', 'ready', 'running');
    end loop;
    perform set_config('nursery_queue.tidy', '', true);
    return done;
end
$$;

-- Asks for one task to be cancelled, as cancel_many does. Finished or unknown: false. With the
-- owner's rights: so a role that may call it need not see the task.
create function nursery_queue.cancel(id bigint, running boolean default true) returns boolean
language sql security definer set search_path = pg_catalog, pg_temp
as $$
    select nursery_queue.cancel_many(array[id], running) > 0
$$;

-- One page of a walk through all tasks by id: cancels the tasks that fit and have not ended, or
-- only counts them. Answers the last id it has looked at, null if there was none, and how many fit.
create function nursery_queue.cancel_page(
    queue text, task_type text, before timestamptz, after bigint, upto bigint, most integer,
    dry_run boolean
) returns table (last bigint, count integer)
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    ids bigint[];
begin
    -- Two walks take turns: so they cannot wait for each other's tasks.
    perform pg_advisory_xact_lock(hashtextextended('nursery_queue.cancel_page', 0));
    with walked as materialized (
        select task.id, task.queue, task.task_type, task.created_at from nursery_queue.task
         where task.id > cancel_page.after and task.id <= cancel_page.upto
         order by task.id
         limit cancel_page.most
    )
    select (select max(id) from walked),
           array(select id from walked
                  where (cancel_page.queue is null or walked.queue = cancel_page.queue)
                    and (cancel_page.task_type is null
                         or walked.task_type = cancel_page.task_type)
                    and (cancel_page.before is null or created_at < cancel_page.before)
                    and (select true from nursery_queue.finished
                          where finished.task_id = walked.id) is null)
      into last, ids;
    count := case when dry_run then cardinality(ids) else nursery_queue.cancel_many(ids) end;
    return next;
end
$$;
