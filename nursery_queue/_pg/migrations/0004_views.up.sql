-- The views: every task with its state, every execution.

create view nursery_queue.task_status as
select task.id,
       task.task_type,
       task.queue,
       coalesce(finished.state,
                case when running.task_id is not null then 'running'
                     when ready.task_id is not null or parked.task_id is not null then 'ready'
                     when scheduled.task_id is not null then 'scheduled' end) as state,
       coalesce(finished.attempt, running.attempt, ready.attempt, scheduled.attempt,
                parked.attempt) as attempt,
       task.created_at,
       coalesce(scheduled.due_at, task.run_at) as run_at,
       coalesce(running.started_at, last.started_at) as started_at,
       finished.finished_at,
       coalesce(running.worker_id, last.worker_id) as worker_id,
       finished.result,
       finished.error_type,
       finished.error_message,
       task.priority,
       coalesce(finished.lost, running.lost, ready.lost, scheduled.lost, parked.lost) as lost,
       running.cancel_requested_at,
       task.params,
       task.on_complete,
       task.context,
       task.completes,
       -- No join: of more than eight the planner does not try every order.
       (select untold.error_message from nursery_queue.untold
         where untold.task_id = finished.task_id) as completion_error,
       task.key,
       task.dedup_key,
       task.max_attempts,
       case when running.task_id is null then last.worker_name
            else (select worker.name from nursery_queue.worker
                   where worker.id = running.worker_id) end as worker_name
  from nursery_queue.task
  left join nursery_queue.finished on finished.task_id = task.id
  left join nursery_queue.running on running.task_id = task.id
  left join nursery_queue.scheduled on scheduled.task_id = task.id
  left join nursery_queue.ready
    on ready.queue = task.queue and ready.task_type = task.task_type
   and ready.priority = task.priority and ready.key = coalesce(task.key, '')
   and ready.task_id = task.id
  left join nursery_queue.parked
    on parked.task_type = task.task_type and parked.queue = task.queue
   and parked.priority = task.priority and parked.task_id = task.id
  left join lateral (select attempt.started_at, attempt.worker_id, attempt.worker_name
                       from nursery_queue.attempt
                      where attempt.task_id = finished.task_id
                      order by attempt.epoch desc
                      limit 1) as last on true;
comment on view nursery_queue.task_status is 'Every task with its state.';

create view nursery_queue.task_attempt as
select task_id,
       row_number() over of_task
           + coalesce(sum(case when earlier is not null
                               then (select sum(value::bigint)
                                       from jsonb_each_text(earlier)) end) over of_task, 0)::bigint
           as number,
       outcome, worker_id, started_at, finished_at,
       error_type, error_message, error_traceback, error_details, final, worker_name
  from (select task_id, epoch, outcome, worker_id, started_at, finished_at,
               error_type, error_message, error_traceback, error_details, final, earlier,
               worker_name
          from nursery_queue.attempt
         union all
        select task_id, epoch, 'running', worker_id, started_at, null, null, null, null, null,
               false, null,
               (select worker.name from nursery_queue.worker where worker.id = running.worker_id)
          from nursery_queue.running) as execution
window of_task as (partition by task_id order by epoch);
comment on view nursery_queue.task_attempt is
    'Every execution of every task, the running ones too.';
