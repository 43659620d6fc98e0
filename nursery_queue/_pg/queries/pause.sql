-- Pauses a queue or resumes it; the triggers on the table see to the rest. Walks queue_pkey.
insert into nursery_queue.queue (name, paused) values (%(queue)s::text, %(paused)s::boolean)
    on conflict (name) do update set paused = excluded.paused
