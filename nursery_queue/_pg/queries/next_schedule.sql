-- next_schedule
-- Whether a schedule of this worker's is due, and in how many seconds the next one of any is, null:
-- there is none. What was moved on while the clock was ahead is due, too: its ticks are noted, so
-- none has another task. Walks schedule_due and schedule_since.
with ahead as (
    update nursery_queue.schedule as known
       set since = nursery_queue.now(), look_at = nursery_queue.now()
      from (select name from nursery_queue.schedule
             where not paused and not orphaned
               and since > nursery_queue.now() + interval '1 second'
             order by since desc limit 1000
               for update skip locked) as found
     where known.name = found.name
    returning true
)
select exists (select from ahead)
       or exists (select from nursery_queue.schedule
                where not paused and not orphaned
                  and look_at <= nursery_queue.now()
                  and (app = %(app)s::text
                       or app is null
                          and (task_type = any(%(task_types)s::text[])
                               or not exists (
                                   select from nursery_queue.worker
                                    where schedule.task_type = any(task_types) and not dead
                                      and heartbeat_at >= nursery_queue.now()
                                                          - make_interval(secs => lease))))) as due,
       (select extract(epoch from min(look_at) - nursery_queue.now())::float8
          from nursery_queue.schedule
         where not paused and not orphaned and look_at > nursery_queue.now()) as next_in
