-- Ready tasks of types that no live worker knows.
select task_type, count(*)
  from nursery_queue.ready
 where not exists (select from nursery_queue.worker
                    where ready.task_type = any(worker.task_types)
                      and worker.heartbeat_at
                          >= nursery_queue.now() - make_interval(secs => worker.lease))
 group by task_type
 order by task_type
