-- Does what `park` does, one by one: what cannot be put aside stays where it is.
select moved, refused from nursery_queue.park_each(%(most)s::int)
