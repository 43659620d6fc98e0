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
    select jsonb_build_array(queue, priority, on_complete) into declared
      from nursery_queue.task_type where name = type;
    declared := coalesce(declared, '["default", 0, null]');
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
    return new;
end
$$;

create trigger as_declared before insert on nursery_queue.task
    for each row when (new.queue is null or new.priority is null or new.on_complete = 'null')
    execute function nursery_queue.as_declared();

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
    insert into nursery_queue.dedup (dedup_key, task_id)
    select dedup_key, id from placed where dedup_key is not null
     order by dedup_key; -- so that two statements cannot wait for each other
    insert into nursery_queue.ready (task_id, queue, priority, task_type, due_at)
    select id, queue, priority, task_type, run_at from placed
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
    insert into nursery_queue.task (task_type, params, queue, priority, run_at,
                                    max_attempts, backoff, timeout, keep_for, dedup_key,
                                    on_complete, context)
    select new.task_type, new.params::pg_catalog.jsonb, new.queue, new.priority,
           coalesce(new.run_at, nursery_queue.now() operator(pg_catalog.+)
                                pg_catalog.make_interval(secs => new.run_after)),
           new.max_attempts, new.backoff::pg_catalog.jsonb, new.timeout, new.keep_for,
           new.dedup_key, new.on_complete::pg_catalog.jsonb, new.context::pg_catalog.jsonb
      from rows from (pg_catalog.json_to_recordset(store.tasks)
                      as (task_type pg_catalog.text, params pg_catalog.text,
                          queue pg_catalog.text, priority pg_catalog.int4,
                          run_at pg_catalog.timestamptz, run_after pg_catalog.float8,
                          max_attempts pg_catalog.int4, backoff pg_catalog.text,
                          timeout pg_catalog.float8, keep_for pg_catalog.float8,
                          dedup_key pg_catalog.text, on_complete pg_catalog.text,
                          context pg_catalog.text))
           with ordinality
           as new (task_type, params, queue, priority, run_at, run_after, max_attempts, backoff,
                   timeout, keep_for, dedup_key, on_complete, context, position)
     order by new.position
    returning task.id;
    get diagnostics stored = row_count;
    perform nursery_queue.all_stored(stored, pg_catalog.json_array_length(store.tasks));
end
$$;

-- Stores one task. With a dedup_key that a live task has, answers that task's id instead. With the
-- owner's rights: so a role that may call it need not see the keys of others.
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
    context jsonb default null
) returns table (id bigint, created boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set enable_seqscan = off -- its plans outlive the statistics they were made with
as $$
#variable_conflict use_column
declare
    stored bigint;
    violated text;
begin
    loop
        return query select task_id, false from nursery_queue.dedup
                      where dedup.dedup_key = enqueue.dedup_key;
        if found then
            return;
        end if;
        begin
            insert into nursery_queue.task (task_type, params, queue, priority, run_at,
                                            max_attempts, backoff, timeout, keep_for, dedup_key,
                                            on_complete, context)
            values (enqueue.task_type, enqueue.params, enqueue.queue, enqueue.priority,
                    coalesce(enqueue.run_at, nursery_queue.now()
                                             + make_interval(secs => enqueue.run_after)),
                    enqueue.max_attempts, enqueue.backoff, enqueue.timeout, enqueue.keep_for,
                    enqueue.dedup_key, enqueue.on_complete, enqueue.context)
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
-- key that a live task has, or one before it in the list, answers that one's id instead.
create function nursery_queue.enqueue_many(tasks json) returns table (id bigint, created boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
    set plan_cache_mode = force_generic_plan -- to plan it takes longer than to run it
as $$
#variable_conflict use_column
declare
    refs bigint[];
    news boolean[];
    violated text;
begin
    loop
        begin
            with asked as materialized (
                select each.*,
                       (select dedup.task_id from nursery_queue.dedup
                         where dedup.dedup_key = each.dedup_key) as holder,
                       each.dedup_key is null or 1 = row_number() over (
                           partition by each.dedup_key order by each.position) as first
                  from rows from (json_array_elements(enqueue_many.tasks),
                                  json_to_recordset(enqueue_many.tasks) as (dedup_key text))
                       with ordinality as each (task, dedup_key, position)
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
                   array_agg(new order by position)
              into refs, news
              from (select position, holder, new,
                           min(number) over (partition by dedup_key,
                                             case when dedup_key is null then position end)
                               as number
                      from numbered) as placed
              left join given on given.number = placed.number;
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
        end;
    end loop;
end
$$;
