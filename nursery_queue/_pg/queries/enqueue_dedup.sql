-- Stores tasks of which some carry a dedup key, in order, through the SQL function; a key
-- that a live task has gives that one's id. Walks dedup_pkey.
select id, created from nursery_queue.enqueue_many(%(tasks)s::json)
