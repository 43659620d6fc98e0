-- Deletes as `prune` does, one by one: what cannot be deleted is kept for another day.
select moved, refused from nursery_queue.prune_each(%(limit)s::int)
