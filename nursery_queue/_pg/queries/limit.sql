-- Sets how many tasks of a queue may run; the triggers on the table see to the rest. Walks
-- queue_pkey.
insert into nursery_queue.queue (name, max_running)
values (%(queue)s::text, %(max_running)s::int)
    on conflict (name) do update set max_running = excluded.max_running
