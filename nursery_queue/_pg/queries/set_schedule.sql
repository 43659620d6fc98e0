-- Stores a schedule at run time; one that there is gets this in its place, and stays its App's.
-- Walks schedule_pkey.
insert into nursery_queue.schedule as known (
       name, cron, tz, every, anchor, task_type, params, queue, priority, key, run_after,
       max_attempts, backoff, timeout, keep_for, on_complete, context, misfire, overlap, jitter, paused)
values (%(name)s::text, %(cron)s::text, %(tz)s::text, %(every)s::float8,
        coalesce(%(anchor)s::timestamptz, '1970-01-01 00:00+00'), %(task_type)s::text,
        %(params)s::jsonb, %(queue)s::text, %(priority)s::int, %(key)s::text, %(run_after)s::float8,
        %(max_attempts)s::int, %(backoff)s::jsonb, %(timeout)s::float8, %(keep_for)s::float8,
        %(on_complete)s::jsonb, %(context)s::jsonb, %(misfire)s::text, %(overlap)s::text,
        %(jitter)s::float8, coalesce(%(paused)s::boolean, false))
    on conflict (name) do update
   set (cron, tz, every, anchor, task_type, params, queue, priority, key, run_after, max_attempts,
        backoff, timeout, keep_for, on_complete, context, misfire, overlap, jitter)
     = (excluded.cron, excluded.tz, excluded.every, excluded.anchor, excluded.task_type,
        excluded.params, excluded.queue, excluded.priority, excluded.key, excluded.run_after,
        excluded.max_attempts, excluded.backoff, excluded.timeout, excluded.keep_for,
        excluded.on_complete, excluded.context, excluded.misfire, excluded.overlap,
        excluded.jitter),
       paused = coalesce(%(paused)s::boolean, known.paused)
