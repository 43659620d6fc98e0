-- What dead workers hold, and what workers hold of which there is no row at all.
select running.task_id, running.epoch, running.attempt, running.lost, running.worker_id,
       running.cancel_requested_at is not null as cancel_requested,
       coalesce(task.keep_for, declared.keep_for) as keep_for,
       task.on_complete is not null as on_complete, task.task_type, task.queue,
       extract(epoch from nursery_queue.now() - running.started_at)::float8 as age
  from nursery_queue.running
  join nursery_queue.task on task.id = running.task_id
  left join nursery_queue.task_type as declared on declared.name = task.task_type
 where running.worker_id = any(%(dead)s::uuid[])
    or not exists (select from nursery_queue.worker where worker.id = running.worker_id)
 order by running.task_id
   for update of running skip locked
