-- due_schedules
-- The names of up to `most` schedules that a worker takes, as in take_schedules. Walks schedule_due.
select name
  from nursery_queue.schedule
 where not paused and not orphaned
   and look_at <= nursery_queue.now()
   and (app = %(app)s::text
        or app is null
           and (task_type = any(%(task_types)s::text[])
                or not exists (select from nursery_queue.worker
                                where schedule.task_type = any(task_types) and not dead
                                  and heartbeat_at >= nursery_queue.now()
                                                      - make_interval(secs => lease))))
 order by look_at
 limit %(most)s::int
