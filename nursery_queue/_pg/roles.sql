-- Roles for programs that share the queue, each with the rights it needs and no more. They cannot
-- log in: grant them to roles that do, as in `grant nursery_queue_producer to my_application`.
--
--   nursery_queue_producer  enqueues in every way, and cancels what it has the id of
--   nursery_queue_reader    sees all tasks, queues, workers and streams
--   nursery_queue_worker    runs tasks, enqueues, sees, and steers (retry, pause, limits)
--   nursery_queue_owner     owns the schema: it migrates
--
-- To be run after every `migrate up`, by a role that owns the schema and may create roles, or by a
-- superuser. Run again it changes nothing.
begin;
set local search_path = pg_catalog, pg_temp;

do $$
declare
    role text;
    thing record;
begin
    foreach role in array array['nursery_queue_producer', 'nursery_queue_reader',
                                'nursery_queue_worker', 'nursery_queue_owner'] loop
        if not exists (select from pg_roles where rolname = role) then
            execute format('create role %I nologin', role);
        end if;
    end loop;

    -- A role that gives an object away must belong to the role that gets it.
    if not pg_has_role('nursery_queue_owner', 'usage') then
        execute format('grant nursery_queue_owner to %I', current_user);
    end if;
    execute format('grant create on database %I to nursery_queue_owner', current_database());
    alter schema nursery_queue owner to nursery_queue_owner;
    for thing in select oid::regclass as name from pg_class
                  where relnamespace = 'nursery_queue'::regnamespace and relkind in ('r', 'v') loop
        execute format('alter table %s owner to nursery_queue_owner', thing.name);
    end loop;
    for thing in select oid::regprocedure as name, prorettype = 'trigger'::regtype as for_triggers
                   from pg_proc where pronamespace = 'nursery_queue'::regnamespace loop
        execute format('alter routine %s owner to nursery_queue_owner', thing.name);
        -- A role that may call a trigger's function may put it on a table of its own.
        if not thing.for_triggers then
            execute format('grant execute on routine %s to nursery_queue_worker', thing.name);
        end if;
    end loop;
end
$$;

grant usage on schema nursery_queue
   to nursery_queue_producer, nursery_queue_reader, nursery_queue_worker;
grant select on nursery_queue.migration
   to nursery_queue_producer, nursery_queue_reader, nursery_queue_worker;

-- Not id, created_at, completes, schedule and tick: these are the table's to give.
grant insert (task_type, params, queue, priority, key, run_at, max_attempts, backoff, timeout,
              keep_for, dedup_key, dedup_for, on_complete, context)
   on nursery_queue.task to nursery_queue_producer;
grant select (id) on nursery_queue.task to nursery_queue_producer; -- for `returning id`
grant execute on routine nursery_queue.enqueue, nursery_queue.enqueue_many, nursery_queue.cancel
   to nursery_queue_producer;

grant select on all tables in schema nursery_queue to nursery_queue_reader;
grant execute on routine nursery_queue.read_streams, nursery_queue.why to nursery_queue_reader;

grant select, insert, update, delete on all tables in schema nursery_queue to nursery_queue_worker;
revoke insert, update, delete on nursery_queue.migration from nursery_queue_worker;
grant usage on all sequences in schema nursery_queue to nursery_queue_worker;
do $$
begin
    if current_setting('server_version_num')::integer >= 170000 then -- else autovacuum must do
        grant maintain on nursery_queue.ready to nursery_queue_worker;
    end if;
end
$$;

commit;
