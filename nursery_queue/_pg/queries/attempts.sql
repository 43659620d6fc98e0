-- The log of one task, oldest first. Walks attempt_pkey and running_pkey.
select task_id, number, outcome, worker_id, started_at, finished_at,
       error_type, error_message, error_traceback, error_details, final,
       worker_name
  from nursery_queue.task_attempt
 where task_id = %(task_id)s::bigint
 order by number
