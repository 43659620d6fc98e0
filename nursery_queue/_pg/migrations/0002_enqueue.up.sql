-- How tasks come in: by a plain insert, or by a function where that does not say enough.

-- Looks up what a task type declares, and keeps it for the transaction with the types looked up
-- before, as long as the list is short. With the owner's rights, for every role that inserts: it
-- tells no more than an insert would.
create function nursery_queue.recall(type text) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    recalled text := nullif(current_setting('nursery_queue.recalled', true), '');
    declared jsonb;
begin
    select jsonb_build_array(queue, priority, on_complete, key_parameter, key_default)
      into declared
      from nursery_queue.task_type where name = type;
    declared := coalesce(declared, '["default", 0, null, null, null]');
    if type is null then -- the table refuses it, in its own words
        return declared;
    end if;
    if octet_length(recalled) > 500 then -- it is read for each row
        recalled := null;
    end if;
    perform set_config('nursery_queue.recalled',
                       (coalesce(recalled, '{}')::jsonb
                        || jsonb_build_object(type, declared))::text, true);
    return declared;
end
$$;

-- Fills in the columns that an insert has left out. Called for each row: so it looks a type up
-- once, not once a row (benchmarks/declared.py), and has no search_path to set, but names
-- everything in full.
create function nursery_queue.as_declared() returns trigger
language plpgsql
as $$
declare
    recalled text := pg_catalog.current_setting('nursery_queue.recalled', true);
    declared pg_catalog.jsonb;
    key_parameter pg_catalog.text;
begin
    if recalled operator(pg_catalog.<>) '' then
        declared := recalled::pg_catalog.jsonb operator(pg_catalog.->) new.task_type;
    end if;
    declared := coalesce(declared, nursery_queue.recall(new.task_type));
    new.queue := coalesce(new.queue, declared operator(pg_catalog.->>) 0);
    new.priority := coalesce(new.priority,
                             (declared operator(pg_catalog.->>) 1)::integer);
    if new.on_complete operator(pg_catalog.=) 'null'::pg_catalog.jsonb then
        new.on_complete := declared operator(pg_catalog.->) 2;
        if new.on_complete operator(pg_catalog.=) 'null'::pg_catalog.jsonb then
            new.on_complete := null;
        end if;
    end if;
    if new.key operator(pg_catalog.=) e'\x01' then
        key_parameter := declared operator(pg_catalog.->>) 3;
        if new.params operator(pg_catalog.?) key_parameter then
            new.key := new.params operator(pg_catalog.->>) key_parameter;
            if pg_catalog.jsonb_typeof(new.params operator(pg_catalog.->) key_parameter)
               operator(pg_catalog.=) any ('{object,array}') then
                raise invalid_parameter_value using message = pg_catalog.format(
                    'the key of a task %s is its parameter %s: that must be a text, a number, a'
                    ' boolean or null, not %s', new.task_type, key_parameter, new.key);
            end if;
        else
            new.key := declared operator(pg_catalog.->>) 4;
        end if;
    end if;
    return new;
end
$$;

create trigger as_declared before insert or update on nursery_queue.task
    for each row when (new.queue is null or new.priority is null or new.on_complete = 'null'
                       or new.key = e'\x01')
    execute function nursery_queue.as_declared();

-- Whether a dedup key is taken: by a live task, or for a while longer. A row can outlive its task:
-- whoever ends a task leaves the row of its key alone that another transaction holds.
create function nursery_queue.is_taken(id bigint, until timestamptz) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select coalesce(is_taken.until > nursery_queue.now(), false)
           or exists (select from nursery_queue.task where task.id = is_taken.id)
              and not exists (select from nursery_queue.finished
                               where finished.task_id = is_taken.id)
$$;

-- Puts new tasks where they belong and rings the bell, once per statement, unless that is switched
-- off or all of them are for queues that leave it to the polls: a commit that rings waits for every
-- other one on the server that does (docs/sql.md). A setting that is not off is on, as an enqueue
-- is not the place to fail for a typing error. Walks queue_quiet, which is mostly empty. With the
-- owner's rights, so that a producer needs no more than INSERT on task; and therefore for rows of
-- that table alone: a role that had it called for a table of its own could run other roles' tasks
-- again (tests/pg/test_rights.py).
create function nursery_queue.place() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_relid <> 'nursery_queue.task'::regclass then
        raise insufficient_privilege using message =
            'place() is the trigger of nursery_queue.task alone, not of ' || tg_relid::regclass;
    end if;
    if exists (select from placed where dedup_key is not null) then
        -- In the order of the keys, so that two statements cannot wait for each other. A row is
        -- never updated but deleted and inserted anew: one that has changed hands while we waited
        -- for it is not taken for the old one (tests/pg/test_dedup_races.py).
        delete from nursery_queue.dedup
         where ctid = any(array(
            select expired.place
              from (select dedup_key from placed where dedup_key is not null
                     order by dedup_key) as wanted
             cross join lateral (select dedup.ctid as place from nursery_queue.dedup
                                  where dedup.dedup_key = wanted.dedup_key
                                    and not nursery_queue.is_taken(dedup.task_id, dedup.until)
                                    for update) as expired));
        insert into nursery_queue.dedup (dedup_key, task_id, until, prune_at)
        select dedup_key, id, nursery_queue.now() + make_interval(secs => dedup_for),
               nursery_queue.now() + coalesce(make_interval(secs => dedup_for), interval '1 hour')
          from placed where dedup_key is not null
         order by dedup_key;
    end if;
    insert into nursery_queue.ready (task_id, queue, priority, task_type, key, due_at)
    select id, queue, priority, task_type, coalesce(key, ''), run_at from placed
     where run_at <= nursery_queue.now();
    insert into nursery_queue.scheduled (task_id, due_at)
    select id, run_at from placed where run_at > nursery_queue.now();
    perform pg_notify('nursery_queue', '')
      where coalesce(lower(current_setting('nursery_queue.notify', true)), 'on')
                not in ('off', 'false', 'no', '0')
        and exists (select from placed
                     where not exists (select from nursery_queue.queue
                                        where name = placed.queue and not notify));
    return null;
end
$$;

create trigger place after insert on nursery_queue.task
    referencing new table as placed
    for each statement execute function nursery_queue.place();

-- Fails if not as many tasks were stored as were asked for: the caller could not tell which task
-- has which id. Every role that inserts may call it: it does nothing (tests/pg/test_left_out.py).
create function nursery_queue.all_stored(stored bigint, asked bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if stored <> asked then
        raise exception '% of the tasks that were to be stored were left out: a trigger on'
            ' nursery_queue.task may change a row or raise an exception, but not drop it',
            asked - stored;
    end if;
    if current_setting('session_replication_role') = 'replica' then
        raise exception 'tasks cannot be enqueued with session_replication_role = replica: the'
            ' triggers of nursery_queue.task would not fire, and nobody would find them';
    end if;
end
$$;

-- Stores tasks, all or none, with ids in their order, and answers the ids in any order; the table
-- checks the values. The insert is a statement of its own, as the server refuses one in
-- WITH where a rule does something else as well. With the caller's rights and search_path, as
-- triggers and rules of the user's belong to the caller's insert: so it names everything in full.
create function nursery_queue.store(tasks json) returns setof bigint
language plpgsql
as $$
declare
    stored pg_catalog.int8;
begin
    return query
    insert into nursery_queue.task (task_type, params, queue, priority, key, run_at,
                                    max_attempts, backoff, timeout, keep_for, dedup_key,
                                    dedup_for, on_complete, context)
    select new.task_type, new.params::pg_catalog.jsonb, new.queue, new.priority, new.key,
           coalesce(new.run_at, nursery_queue.now() operator(pg_catalog.+)
                                pg_catalog.make_interval(secs => new.run_after)),
           new.max_attempts, new.backoff::pg_catalog.jsonb, new.timeout, new.keep_for,
           new.dedup_key, new.dedup_for, new.on_complete::pg_catalog.jsonb, new.context::pg_catalog.jsonb
      from rows from (pg_catalog.json_to_recordset(store.tasks)
                      as (task_type pg_catalog.text, params pg_catalog.text,
                          queue pg_catalog.text, priority pg_catalog.int4, key pg_catalog.text,
                          run_at pg_catalog.timestamptz, run_after pg_catalog.float8,
                          max_attempts pg_catalog.int4, backoff pg_catalog.text,
                          timeout pg_catalog.float8, keep_for pg_catalog.float8,
                          dedup_key pg_catalog.text, dedup_for pg_catalog.float8,
                          on_complete pg_catalog.text, context pg_catalog.text))
           with ordinality
           as new (task_type, params, queue, priority, key, run_at, run_after, max_attempts,
                   backoff, timeout, keep_for, dedup_key, dedup_for, on_complete, context,
                   position)
     order by new.position
    returning task.id;
    get diagnostics stored = row_count;
    perform nursery_queue.all_stored(stored, pg_catalog.json_array_length(store.tasks));
end
$$;

-- Stores one task. With a dedup_key that a live task has, or that is taken for a while longer
-- (dedup_for), answers that task's id instead. With debounce_wait it is due so many seconds later,
-- and replaces the one that has the dedup_key, unless that has started. With the owner's rights: so
-- a role that may call it need not see the keys of others.
create function nursery_queue.enqueue(
    task_type text,
    params jsonb default '{}',
    queue text default null,
    priority integer default null,
    run_at timestamptz default null,
    run_after double precision default 0,
    max_attempts integer default null,
    backoff jsonb default null,
    timeout double precision default null,
    keep_for double precision default null,
    dedup_key text default null,
    on_complete jsonb default 'null',
    context jsonb default null,
    key text default e'\x01',
    dedup_for double precision default null,
    debounce_wait double precision default null,
    debounce_max_wait double precision default null
) returns table (id bigint, created boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set enable_seqscan = off -- its plans outlive the statistics they were made with
as $$
#variable_conflict use_column
declare
    stored bigint;
    violated text;
begin
    if debounce_wait is not null or debounce_max_wait is not null then
        return query select * from nursery_queue.enqueue_many(json_build_array(json_strip_nulls(
            json_build_object(
                'task_type', enqueue.task_type, 'params', enqueue.params::text,
                'queue', enqueue.queue, 'priority', enqueue.priority, 'key', enqueue.key,
                'run_at', enqueue.run_at, 'run_after', enqueue.run_after,
                'max_attempts', enqueue.max_attempts, 'backoff', enqueue.backoff::text,
                'timeout', enqueue.timeout::text, 'keep_for', enqueue.keep_for,
                'dedup_key', enqueue.dedup_key, 'dedup_for', enqueue.dedup_for,
                'on_complete', enqueue.on_complete::text, 'context', enqueue.context::text,
                'debounce_wait', coalesce(enqueue.debounce_wait, 0),
                'debounce_max_wait', enqueue.debounce_max_wait))));
        return;
    end if;
    loop
        return query select task_id, false from nursery_queue.dedup
                      where dedup.dedup_key = enqueue.dedup_key
                        and nursery_queue.is_taken(dedup.task_id, dedup.until);
        if found then
            return;
        end if;
        begin
            insert into nursery_queue.task (task_type, params, queue, priority, key, run_at,
                                            max_attempts, backoff, timeout, keep_for, dedup_key,
                                            dedup_for, on_complete, context)
            values (enqueue.task_type, enqueue.params, enqueue.queue, enqueue.priority,
                    enqueue.key,
                    coalesce(enqueue.run_at, nursery_queue.now()
                                             + make_interval(secs => enqueue.run_after)),
                    enqueue.max_attempts, enqueue.backoff, enqueue.timeout, enqueue.keep_for,
                    enqueue.dedup_key, enqueue.dedup_for, enqueue.on_complete, enqueue.context)
            returning task.id into stored;
            perform nursery_queue.all_stored(count(stored), 1);
            -- Not by `return query insert`: its row would outlive an insert that fails.
            return query select stored, true;
            return;
        exception when unique_violation then
            get stacked diagnostics violated = constraint_name;
            if violated <> 'dedup_pkey' then
                raise;
            end if;
            if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
                raise serialization_failure using message =
                    'a task with this dedup_key was stored since this transaction began';
            end if;
            -- Stored by another transaction between our look and our insert: look again
            -- (tests/pg/test_dedup_races.py).
        end;
    end loop;
end
$$;

-- Stores many tasks of which some have a dedup_key, all or none, with ids in their order. For a
-- key that is taken, or that one before it in the list has, answers that one's id instead; what is
-- debounced replaces that one first, unless it has started.
create function nursery_queue.enqueue_many(tasks json) returns table (id bigint, created boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
    set plan_cache_mode = force_generic_plan -- to plan it takes longer than to run it
as $$
#variable_conflict use_column
declare
    refs bigint[];
    news boolean[];
    violated text;
    merged json;
    overtaken boolean;
    deadlocks integer := 0;
begin
    loop
        begin
            merged := case when tasks::text like '%"debounce_wait"%'
                           then nursery_queue.debounced(tasks) else tasks end;
            with asked as materialized (
                select each.*,
                       (select dedup.task_id from nursery_queue.dedup
                         where dedup.dedup_key = each.dedup_key
                           and nursery_queue.is_taken(dedup.task_id, dedup.until)) as holder,
                       each.dedup_key is null or 1 = row_number() over (
                           partition by each.dedup_key order by each.position) as first
                  from rows from (json_array_elements(merged),
                                  json_to_recordset(merged) as (dedup_key text, free boolean))
                       with ordinality as each (task, dedup_key, free, position)
            ), numbered as materialized (
                select position, holder, dedup_key, first and holder is null as new,
                       count(*) filter (where first and holder is null)
                           over (order by position) as number
                  from asked
            ), given as materialized (
                -- The keys are taken in their own order, by the trigger: so no two lists can
                -- wait for each other.
                select id, row_number() over (order by id) as number
                  from nursery_queue.store((select coalesce(json_agg(task order by position), '[]')
                                              from asked where first and holder is null)) as id
            )
            select array_agg(coalesce(holder, given.id) order by position),
                   array_agg(new order by position),
                   (select bool_or(asked.free and asked.holder is not null) from asked)
              into refs, news, overtaken
              from (select position, holder, new,
                           min(number) over (partition by dedup_key,
                                             case when dedup_key is null then position end)
                               as number
                      from numbered) as placed
              left join given on given.number = placed.number;
            if overtaken then
                -- Stored by another transaction since we looked whether there is one to replace.
                raise unique_violation using constraint = 'dedup_pkey';
            end if;
            return query select * from unnest(refs, news);
            return;
        exception when unique_violation then
            get stacked diagnostics violated = constraint_name;
            if violated <> 'dedup_pkey' then
                raise;
            end if;
            if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
                raise serialization_failure using message =
                    'a task with one of these dedup_keys was stored since this transaction began';
            end if;
            -- Stored by another transaction between our look and our insert. All our keys are free
            -- again: look again (tests/pg/test_dedup_races.py).
        when deadlock_detected then
            -- Keys that are debounced are held before the others, and a task that ends meanwhile
            -- frees a key that was not to be waited for. Here, too, all of ours are free again. If
            -- it goes on, it is over something that the caller held before.
            deadlocks := deadlocks + 1;
            if deadlocks = 3 then
                raise;
            end if;
            perform pg_sleep(0.05); -- the other one has to wake up before we take them again
        end;
    end loop;
end
$$;
