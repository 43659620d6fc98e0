-- Notes that no code declares these any more. Walks schedule_pkey.
update nursery_queue.schedule set orphaned = true where name = any(%(names)s::text[])
