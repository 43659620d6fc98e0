-- Asks for a task to be cancelled.
select nursery_queue.cancel(%(id)s::bigint, %(running)s::boolean)
