-- Stores tasks of which some carry a dedup key, in order, through the SQL function; a key
-- that a live task has gives that one's id. Walks dedup_pkey.
select stored.id, stored.created
  from unnest(%(task_types)s::text[], %(params)s::text[], %(queues)s::text[],
              %(priorities)s::int[], %(run_ats)s::timestamptz[], %(run_afters)s::float8[],
              %(max_attempts)s::int[], %(backoffs)s::text[], %(timeouts)s::float8[],
              %(keep_fors)s::float8[], %(dedup_keys)s::text[])
       with ordinality
       as new (task_type, params, queue, priority, run_at, run_after,
               max_attempts, backoff, timeout, keep_for, dedup_key, position)
 cross join lateral nursery_queue.enqueue(
           new.task_type, new.params::jsonb, new.queue, new.priority, new.run_at, new.run_after,
           new.max_attempts, new.backoff::jsonb, new.timeout, new.keep_for, new.dedup_key)
       as stored
 order by new.position
