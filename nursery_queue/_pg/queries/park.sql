-- Puts ready tasks of types that no live worker knows aside. Walks ready_key.
select nursery_queue.park(%(most)s::int)
