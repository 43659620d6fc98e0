-- How many tasks there are, by queue and state. Reads everything.
select queue, state, count(*)
  from (select queue, 'ready' as state from nursery_queue.ready
         union all
        select task.queue, 'scheduled' from nursery_queue.scheduled
          join nursery_queue.task on task.id = scheduled.task_id
         union all
        select task.queue, 'running' from nursery_queue.running
          join nursery_queue.task on task.id = running.task_id
         union all
        select task.queue, finished.state from nursery_queue.finished
          join nursery_queue.task on task.id = finished.task_id) as position
 group by queue, state
 order by queue, state
