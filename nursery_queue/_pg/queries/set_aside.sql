-- Lets a task fail that cannot go on from where it is. Walks the keys of all positions.
select nursery_queue.set_aside(%(id)s::bigint, %(error_type)s::text, %(error_message)s::text)
