-- hold_schedule
-- Puts off a schedule that is due, with all its ticks, unless somebody has its row. Answers whether
-- the error is another than before; null: its ticks are only held up. Walks schedule_pkey.
update nursery_queue.schedule as known
   set look_at = nursery_queue.now() + make_interval(secs => %(seconds)s::float8),
       next_at = case when %(error)s::text is null then known.next_at end,
       error = coalesce(%(error)s::text, known.error)
  from (select name, error from nursery_queue.schedule
         where name = %(name)s::text and look_at <= nursery_queue.now()
           for update skip locked) as before
 where known.name = before.name
returning known.error is distinct from before.error
