-- Puts ready tasks of types that no live worker knows aside. Walks ready_key.
select * from nursery_queue.park(%(most)s::int, %(after_queue)s::text, %(after_type)s::text)
