-- A page of tasks, newest first, without payloads and results unless asked for. The page's ids are
-- found in the table of the asked state; only these tasks are then looked up everywhere.
-- Walks task_pkey, or finished_pkey or the like, backwards, and looks tasks up one by one: a join
-- may be planned as a walk through all of them (offset 0).
with page as materialized (
    (select id from nursery_queue.task
      where %(state)s::text is null
        and (%(queue)s::text is null or queue = %(queue)s::text)
        and (%(task_type)s::text is null or task_type = %(task_type)s::text)
        and id < coalesce(%(after)s::bigint, 9223372036854775807)
      order by id desc
      limit %(limit)s::int)
    union all
    (select place.task_id
       from (select task_id, queue, task_type from nursery_queue.ready
              union all
             select task_id, queue, task_type from nursery_queue.parked) as place
      where %(state)s::text = 'ready'
        and (%(queue)s::text is null or queue = %(queue)s::text)
        and (%(task_type)s::text is null or task_type = %(task_type)s::text)
        and task_id < coalesce(%(after)s::bigint, 9223372036854775807)
      order by task_id desc
      limit %(limit)s::int)
    union all
    (select place.task_id
       from nursery_queue.scheduled as place
      cross join lateral (select queue, task_type from nursery_queue.task
                           where task.id = place.task_id offset 0) as task
      where %(state)s::text = 'scheduled'
        and (%(queue)s::text is null or queue = %(queue)s::text)
        and (%(task_type)s::text is null or task_type = %(task_type)s::text)
        and place.task_id < coalesce(%(after)s::bigint, 9223372036854775807)
      order by place.task_id desc
      limit %(limit)s::int)
    union all
    (select place.task_id
       from nursery_queue.running as place
      cross join lateral (select queue, task_type from nursery_queue.task
                           where task.id = place.task_id offset 0) as task
      where %(state)s::text = 'running'
        and (%(queue)s::text is null or queue = %(queue)s::text)
        and (%(task_type)s::text is null or task_type = %(task_type)s::text)
        and place.task_id < coalesce(%(after)s::bigint, 9223372036854775807)
      order by place.task_id desc
      limit %(limit)s::int)
    union all
    (select place.task_id
       from nursery_queue.finished as place
      cross join lateral (select queue, task_type from nursery_queue.task
                           where task.id = place.task_id offset 0) as task
      where %(state)s::text = 'succeeded' and place.state = 'succeeded'
        and (%(queue)s::text is null or queue = %(queue)s::text)
        and (%(task_type)s::text is null or task_type = %(task_type)s::text)
        and place.task_id < coalesce(%(after)s::bigint, 9223372036854775807)
      order by place.task_id desc
      limit %(limit)s::int)
    union all
    -- Failed and cancelled tasks have an index of their own: they may be few among many.
    (select place.task_id
       from nursery_queue.finished as place
      cross join lateral (select queue, task_type from nursery_queue.task
                           where task.id = place.task_id offset 0) as task
      where %(state)s::text in ('failed', 'cancelled')
        and place.state = %(state)s::text and place.state <> 'succeeded'
        and (%(queue)s::text is null or queue = %(queue)s::text)
        and (%(task_type)s::text is null or task_type = %(task_type)s::text)
        and place.task_id < coalesce(%(after)s::bigint, 9223372036854775807)
      order by place.task_id desc
      limit %(limit)s::int)
)
select id, task_type, queue, state, attempt, created_at, run_at, started_at, finished_at,
       worker_id, case when %(payloads)s::boolean then result end as result,
       error_type, error_message, priority, lost,
       cancel_requested_at is not null as cancel_requested,
       on_complete ->> 'task_type' as on_complete, completes,
       case when %(payloads)s::boolean then params end as params,
       case when %(payloads)s::boolean then context end as context, completion_error,
       key, dedup_key, max_attempts, worker_name
  from nursery_queue.task_status
 where id = any(array(select id from page))
 order by id desc
