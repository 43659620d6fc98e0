-- Locks up to `most` schedules that are due, and answers what is to be known to decide about them.
-- A worker takes those of its App, and of those of no App the ones whose task type it knows, or
-- that no live worker does, to say so. *name*: only this one; null: any. Walks schedule_due.
with living as materialized (
    select app, task_types, started_at from nursery_queue.worker
     where not dead and heartbeat_at >= nursery_queue.now() - make_interval(secs => lease)
)
select name, cron, tz, every, anchor, misfire, overlap, jitter, since, error, task_type,
       coalesce(greatest(resumed_at,
                         case when app is null
                              then (select min(started_at) from living
                                     where schedule.task_type = any(living.task_types))
                              else (select min(started_at) from living
                                     where living.app = %(app)s::text) end),
                nursery_queue.now()) as missed_until,
       nursery_queue.now() as now,
       nursery_queue.unfinished(earlier || last_task_id) <> '{}' as busy,
       app is not null or task_type = any(%(task_types)s::text[]) as known,
       not dropped or nursery_queue.is_declared(app, name) as declared
  from nursery_queue.schedule
 where not paused and not orphaned
   and look_at <= nursery_queue.now()
   and (app = %(app)s::text
        or app is null and (task_type = any(%(task_types)s::text[])
                            or not exists (select from living
                                            where schedule.task_type = any(living.task_types))))
   and (%(name)s::text is null or name = %(name)s::text)
   and exists (select from nursery_queue.worker where id = %(worker_id)s::uuid and not dead)
 order by look_at
 limit %(most)s::int
   for update of schedule skip locked
