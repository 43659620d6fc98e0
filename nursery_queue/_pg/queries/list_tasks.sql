-- A page of tasks, newest first. Walks task_pkey backwards.
select id, task_type, queue, state, attempt, created_at, run_at, started_at, finished_at,
       worker_id, result, error_type, error_message, priority, lost,
       cancel_requested_at is not null as cancel_requested
  from nursery_queue.task_status
 where (%(state)s::text is null or state = %(state)s::text)
   and (%(queue)s::text is null or queue = %(queue)s::text)
   and (%(task_type)s::text is null or task_type = %(task_type)s::text)
   and (%(after)s::bigint is null or id < %(after)s::bigint)
 order by id desc
 limit %(limit)s::int
