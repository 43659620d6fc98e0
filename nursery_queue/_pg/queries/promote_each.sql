-- Does what `promote` does, one by one: what cannot be made ready fails, with the reason.
select moved, refused from nursery_queue.promote_each(%(limit)s::int)
