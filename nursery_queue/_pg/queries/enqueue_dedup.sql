-- Stores tasks of which some carry a dedup key, in order, through the SQL function; a key
-- that a live task has gives that one's id. Walks dedup_pkey.
select id, created
  from nursery_queue.enqueue_many(
           %(task_types)s::text[], %(params)s::text[]::jsonb[], %(queues)s::text[],
           %(priorities)s::int[], %(run_ats)s::timestamptz[], %(run_afters)s::float8[],
           %(max_attempts)s::int[], %(backoffs)s::text[]::jsonb[], %(timeouts)s::float8[],
           %(keep_fors)s::float8[], %(dedup_keys)s::text[], %(on_completes)s::text[]::jsonb[],
           %(contexts)s::text[]::jsonb[])
