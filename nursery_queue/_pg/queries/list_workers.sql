-- Every registered worker, and how many tasks it holds.
select id, name, host, pid, queues, task_types, started_at, heartbeat_at, draining,
       heartbeat_at >= nursery_queue.now() - make_interval(secs => lease) as alive,
       (select count(*) from nursery_queue.running where running.worker_id = worker.id) as running
  from nursery_queue.worker
 order by started_at, id
