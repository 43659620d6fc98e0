-- The claims that the database has of a worker. Reads all that runs.
select running.task_id, running.epoch, running.attempt, running.lost, running.worker_id,
       running.cancel_requested_at is not null as cancel_requested, task.keep_for,
       task.on_complete is not null as on_complete, task.task_type, task.queue,
       extract(epoch from nursery_queue.now() - running.started_at)::float8 as age,
       running.started, null::int as max_lost
  from nursery_queue.running
  join nursery_queue.task on task.id = running.task_id
 where running.worker_id = %(worker_id)s::uuid
 order by running.task_id
