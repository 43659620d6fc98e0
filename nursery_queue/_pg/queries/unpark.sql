-- Brings parked tasks of these types back. Walks parked_key.
select nursery_queue.unpark(%(task_types)s::text[], %(most)s::int)
