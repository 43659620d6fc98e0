-- Where tasks are. Walks the primary keys, ready_key and parked_key.
select id, task_type, queue, state, attempt, created_at, run_at, started_at, finished_at,
       worker_id, result, error_type, error_message, priority, lost,
       cancel_requested_at is not null as cancel_requested,
       on_complete ->> 'task_type' as on_complete, completes,
       case when %(payloads)s::boolean then params end as params,
       case when %(payloads)s::boolean then context end as context, completion_error,
       key, dedup_key, max_attempts, worker_name
  from nursery_queue.task_status
 where id = any(%(ids)s::bigint[])
