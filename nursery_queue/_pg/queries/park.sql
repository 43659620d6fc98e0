-- Puts ready tasks of types that no live worker knows out of the way of claims; answers how many,
-- and where the next call is to begin. Walks ready_key.
select moved, resume_queue, resume_type
  from nursery_queue.park(%(most)s::int, %(after_queue)s::text, %(after_type)s::text)
