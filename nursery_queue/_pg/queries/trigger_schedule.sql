-- Stores a task of a schedule here and now; null: there is none. Walks schedule_pkey.
select nursery_queue.trigger_schedule(%(name)s::text)
