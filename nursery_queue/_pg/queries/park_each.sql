-- Does what `park` does, task by task: one that cannot be parked stays where it is.
select moved, refused from nursery_queue.park_each(%(most)s::int)
