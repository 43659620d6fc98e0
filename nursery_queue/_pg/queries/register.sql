-- Makes a worker known. Walks worker_pkey.
insert into nursery_queue.worker (id, name, host, pid, queues, task_types, lease,
                                  started_at, heartbeat_at)
values (%(id)s::uuid, %(name)s::text, %(host)s::text, %(pid)s::int, %(queues)s::text[],
        %(task_types)s::text[], %(lease)s::float8, nursery_queue.now(), nursery_queue.now())
