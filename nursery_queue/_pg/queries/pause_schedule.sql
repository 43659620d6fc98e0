-- Pauses a schedule or resumes it; the trigger on the table sees to the rest. Walks schedule_pkey.
update nursery_queue.schedule set paused = %(paused)s::boolean where name = %(name)s::text
returning true
