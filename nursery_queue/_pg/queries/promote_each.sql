-- Does what `promote` does, task by task: one that cannot be made ready fails, with the reason.
select moved, refused from nursery_queue.promote_each(%(limit)s::int)
