-- Counts ready tasks of types that no live worker knows, and says when the oldest fell due. Reads
-- all ready tasks, once; whether a worker knows a type is asked once a type.
select task_type, count(*), min(due_at) as since
  from (select task_type, due_at from nursery_queue.ready
         union all
        select task_type, due_at from nursery_queue.parked) as waiting
 group by task_type
having not exists (select from nursery_queue.worker
                    where waiting.task_type = any(worker.task_types)
                      and worker.heartbeat_at
                          >= nursery_queue.now() - make_interval(secs => worker.lease))
 order by task_type
