-- Every schedule, or the one of this name. Orphaned: workers of its App have started without it, and
-- none that lives declares it. Reads all of these.
with declared as materialized (
    select distinct worker.app, unnest(worker.schedules) as name from nursery_queue.worker
     where not dead and heartbeat_at >= nursery_queue.now() - make_interval(secs => lease)
       and exists (select from nursery_queue.schedule where dropped)
)
select schedule.name, cron, tz, every, anchor, next_at, since, last_tick, last_task_id, fired,
       skipped, paused, app, task_type,
       coalesce(schedule.queue, (select task_type.queue from nursery_queue.task_type
                                  where task_type.name = schedule.task_type), 'default') as queue,
       app is not null
           and (orphaned
                or dropped and not exists (select from declared
                                            where declared.app = schedule.app
                                              and declared.name = schedule.name)) as orphaned,
       misfire, overlap, jitter, params, error, nursery_queue.now() as now
  from nursery_queue.schedule
 where %(name)s::text is null or schedule.name = %(name)s::text
 order by schedule.name
