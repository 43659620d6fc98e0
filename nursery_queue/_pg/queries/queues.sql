-- Every queue that is set in some way or has live tasks. Reads all of these.
with live as (
    select queue, 'ready' as state from nursery_queue.ready
     union all
    select queue, 'ready' from nursery_queue.parked
     union all
    select task.queue, 'scheduled' from nursery_queue.scheduled
      join nursery_queue.task on task.id = scheduled.task_id
     union all
    select task.queue, 'running' from nursery_queue.running
      join nursery_queue.task on task.id = running.task_id
), counted as (
    select queue as name,
           count(*) filter (where state = 'scheduled') as scheduled,
           count(*) filter (where state = 'ready') as ready,
           count(*) filter (where state = 'running') as running
      from live
     group by queue
)
select name, coalesce(paused, false) as paused, max_running, max_running_per_key,
       rate_count, rate_per, rate_burst, key_rate_count, key_rate_per, key_rate_burst,
       coalesce(scheduled, 0) as scheduled, coalesce(ready, 0) as ready,
       coalesce(running, 0) as running, coalesce(notify, true) as notify
  from nursery_queue.queue
  full join counted using (name)
 order by name
