-- Stores tasks; the trigger places them and rings. Walks no index but the primary key.
insert into nursery_queue.task (task_type, params, queue, priority, run_at,
                                max_attempts, backoff, timeout, keep_for,
                                on_complete, context)
select task_type, params::jsonb, queue, priority,
       coalesce(run_at, nursery_queue.now() + make_interval(secs => run_after)),
       max_attempts, backoff::jsonb, timeout, keep_for, on_complete::jsonb, context::jsonb
  from unnest(%(task_types)s::text[], %(params)s::text[], %(queues)s::text[],
              %(priorities)s::int[], %(run_ats)s::timestamptz[], %(run_afters)s::float8[],
              %(max_attempts)s::int[], %(backoffs)s::text[], %(timeouts)s::float8[],
              %(keep_fors)s::float8[], %(on_completes)s::text[], %(contexts)s::text[])
       with ordinality
       as new (task_type, params, queue, priority, run_at, run_after,
               max_attempts, backoff, timeout, keep_for, on_complete, context, position)
 order by position
returning id
