-- Stores tasks; the trigger places them and rings. Walks no index but the primary key. The tasks come
-- as one text, since what an array means depends on settings of the session, which may be the
-- user's (tests/producers/test_settings.py).
with asked as materialized (
    select *
      from rows from (json_to_recordset(%(tasks)s::json)
                      as (task_type text, params text, queue text, priority integer,
                          run_at timestamptz, run_after float8, max_attempts integer, backoff text,
                          timeout float8, keep_for float8, on_complete text, context text))
           with ordinality
           as new (task_type, params, queue, priority, run_at, run_after, max_attempts, backoff,
                   timeout, keep_for, on_complete, context, position)
), stored as (
    insert into nursery_queue.task (task_type, params, queue, priority, run_at,
                                    max_attempts, backoff, timeout, keep_for,
                                    on_complete, context)
    select task_type, params::jsonb, queue, priority,
           coalesce(run_at, nursery_queue.now() + make_interval(secs => run_after)),
           max_attempts, backoff::jsonb, timeout, keep_for, on_complete::jsonb, context::jsonb
      from asked
     order by position
    returning id
)
select id
  from nursery_queue.all_stored(array(select id from stored), (select count(*) from asked)) as id
