-- Counts tasks by queue and state, and how many of them are due and wait for a worker. Reads
-- everything.
select queue, state, count(*), count(*) filter (where due) as due
  from (select queue, 'ready' as state, true as due from nursery_queue.ready
         union all
        select queue, 'ready', true from nursery_queue.parked
         union all
        select task.queue, 'scheduled', scheduled.due_at <= nursery_queue.now()
          from nursery_queue.scheduled
          join nursery_queue.task on task.id = scheduled.task_id
         union all
        select task.queue, 'running', false from nursery_queue.running
          join nursery_queue.task on task.id = running.task_id
         union all
        select task.queue, finished.state, false from nursery_queue.finished
          join nursery_queue.task on task.id = finished.task_id) as position (queue, state, due)
 group by queue, state
 order by queue, state
