-- Does what `prune` does, task by task: one that cannot be deleted is kept for another day.
select moved, refused from nursery_queue.prune_each(%(limit)s::int)
