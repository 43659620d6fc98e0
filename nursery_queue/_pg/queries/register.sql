-- Makes a worker known, and its code's declarations, in the order of their names: so two workers
-- that start at once cannot wait for each other. Walks worker_pkey and task_type_pkey.
with declared as (
    insert into nursery_queue.task_type as known (name, queue, priority, keep_for, on_complete,
                                                  key_parameter, key_default)
    select name, queue, priority, keep_for, on_complete::jsonb, key_parameter, key_default
      from unnest(%(names)s::text[], %(type_queues)s::text[], %(priorities)s::int[],
                  %(keep_fors)s::float8[], %(on_completes)s::text[],
                  %(key_parameters)s::text[], %(key_defaults)s::text[])
           as declared (name, queue, priority, keep_for, on_complete, key_parameter, key_default)
     order by name
        on conflict (name) do update
       set queue = excluded.queue, priority = excluded.priority, keep_for = excluded.keep_for,
           on_complete = excluded.on_complete, key_parameter = excluded.key_parameter,
           key_default = excluded.key_default, declared_at = nursery_queue.now()
     where (known.queue, known.priority, known.keep_for, known.on_complete, known.key_parameter,
            known.key_default)
           is distinct from
           (excluded.queue, excluded.priority, excluded.keep_for, excluded.on_complete,
            excluded.key_parameter, excluded.key_default)
)
insert into nursery_queue.worker (id, name, host, pid, queues, task_types, lease, heartbeat,
                                  max_lost, app, schedules, started_at, heartbeat_at)
values (%(id)s::uuid, %(name)s::text, %(host)s::text, %(pid)s::int, %(queues)s::text[],
        %(task_types)s::text[], %(lease)s::float8, %(heartbeat)s::float8,
        %(max_lost)s::jsonb, %(app)s::text, %(schedules)s::text[],
        nursery_queue.now(), nursery_queue.now())
