-- Has enqueues to a queue ring, or leaves its tasks to the polls; the triggers on the table see
-- to the rest. Walks queue_pkey.
insert into nursery_queue.queue (name, notify) values (%(queue)s::text, %(notify)s::boolean)
    on conflict (name) do update set notify = excluded.notify
