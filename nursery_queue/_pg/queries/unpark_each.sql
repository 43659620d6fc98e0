-- Does what `unpark` does, task by task: one that cannot be brought back fails, with the reason.
select moved, refused from nursery_queue.unpark_each(%(task_types)s::text[], %(most)s::int)
