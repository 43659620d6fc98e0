-- Deletes a schedule; the ticks that have had a task stay noted. Walks schedule_pkey.
delete from nursery_queue.schedule where name = %(name)s::text returning true
