-- Moves running tasks on and closes their attempts. A row whose claim is not the worker's any more
-- is left alone, and so is one that must not go round again (cancel requested) or that another open
-- transaction holds; the answer says which. Walks running_pkey, worker_pkey
-- and task_pkey; tests/pg/test_plans.py holds it.
with settled as materialized (
    select * from unnest(
        %(task_ids)s::bigint[], %(epochs)s::int[], %(states)s::text[], %(finals)s::boolean[],
        %(attempts)s::int[], %(losts)s::int[], %(delays)s::float8[], %(keep_fors)s::float8[],
        %(outcomes)s::text[], %(results)s::text[], %(error_types)s::text[],
        %(error_messages)s::text[], %(error_tracebacks)s::text[], %(error_details)s::text[],
        %(on_completes)s::boolean[])
    as settled (task_id, epoch, state, final, attempt, lost, delay, keep_for, outcome, result,
                error_type, error_message, error_traceback, error_details, on_complete)
), mine as materialized (
    -- Looked up one by one and then found by ctid, whatever the statistics say: statistics of a
    -- table that happened to be empty had the whole index read for each batch.
    select settled.*, found.place
      from settled
     cross join lateral (select ctid as place from nursery_queue.running
                          where running.task_id = settled.task_id
                            and running.epoch = settled.epoch
                            and (settled.final or running.cancel_requested_at is null)
                            for update skip locked) as found
), closed as (
    delete from nursery_queue.running
     using mine
     where running.ctid = mine.place
    returning running.worker_id, running.started_at, running.pool, running.suspect, mine.*
), named as materialized (
    -- Once a batch: it is of one worker, and of a few where what they have lost is settled.
    select id, name from nursery_queue.worker
     where id = any(array(select distinct worker_id from closed))
), unkept as materialized (
    -- One that is not to be kept, but to which another transaction refers at this moment (a foreign
    -- key locks the row), is left to the next prune: its outcome does not wait.
    select task_id from closed
     cross join lateral (select from nursery_queue.task where task.id = closed.task_id
                            for update skip locked) as free
     where final and keep_for = 0
), logged as (
    insert into nursery_queue.attempt (task_id, epoch, outcome, worker_id, started_at,
        finished_at, error_type, error_message, error_traceback, error_details, final, worker_name)
    select task_id, epoch, outcome, worker_id, started_at, nursery_queue.now(),
           error_type, error_message, error_traceback, error_details::jsonb, final,
           (select name from named where named.id = closed.worker_id)
      from closed
     where outcome is not null and task_id <> all(array(select task_id from unkept))
), again as (
    insert into nursery_queue.ready (task_id, queue, priority, task_type, key, attempt, epoch, lost,
                                     suspect)
    select task.id, task.queue, task.priority, task.task_type, coalesce(task.key, ''),
           closed.attempt, closed.epoch, closed.lost, closed.suspect
      from closed
      join nursery_queue.task on task.id = closed.task_id
     where closed.state = 'ready'
    returning task_id
), later as (
    insert into nursery_queue.scheduled (task_id, due_at, attempt, epoch, lost)
    select task_id, nursery_queue.now() + make_interval(secs => delay), attempt, epoch, lost
      from closed
     where state = 'scheduled'
), ended as (
    insert into nursery_queue.finished (task_id, state, attempt, epoch, lost, finished_at,
                                        expires_at, result, error_type, error_message)
    select task_id, state, attempt, epoch, lost, nursery_queue.now(),
           nursery_queue.now() + make_interval(secs => keep_for),
           result::jsonb, error_type, error_message
      from closed
     where final and task_id <> all(array(select task_id from unkept))
), told as materialized (
    -- Looked up one by one: a join may be planned as a walk through all tasks (offset 0).
    select closed.task_id, asked.on_complete, asked.context,
           nursery_queue.ending(state, result::jsonb, error_type, error_message, true) as ending,
           keep_for > 0 as kept
      from closed
     cross join lateral (select task.on_complete, task.context from nursery_queue.task
                          where task.id = closed.task_id and task.on_complete is not null
                         offset 0) as asked
     where final and closed.on_complete
), forgotten as (
    delete from nursery_queue.task
     where id = any(array(select task_id from unkept))
), forgotten_attempts as (
    delete from nursery_queue.attempt
     where task_id = any(array(select task_id from unkept))
), freed as (
    -- A key that another transaction holds is left to it: see nursery_queue.hold.
    delete from nursery_queue.dedup
     where ctid = any(array(
        select ctid from nursery_queue.dedup
         where task_id = any(array(select task_id from closed where final))
           and coalesce(until <= nursery_queue.now(), true)
           for update skip locked))
), refused as (
    select settled.task_id, settled.epoch,
           case when running.task_id is null then 'stale'
                when running.cancel_requested_at is not null and not settled.final
                     then 'cancel_requested'
                else 'locked' end as refusal
      from settled
      left join closed using (task_id, epoch)
      left join nursery_queue.running
        on running.task_id = settled.task_id and running.epoch = settled.epoch
     where closed.task_id is null
       -- Mostly none is, and then they need not be compared, each with each.
       and (select count(*) from closed) < (select count(*) from settled)
)
-- Always answers at least one row, so that the bells are rung, and `untold` is answered. A new due
-- time rings too, and so does a slot of a queue with a limit: a worker that has found it full
-- meanwhile may not be seen here (tests/pg/test_limits.py).
select refused.task_id, refused.epoch, refused.refusal, others.untold
  from (select case when exists (select from closed where final)
                    then pg_notify('nursery_queue_finished', '') end,
               case when exists (select from closed where not final or pool is not null)
                    then pg_notify('nursery_queue', '') end,
               case when exists (select from told)
                    then (select nursery_queue.complete(
                                     array_agg(task_id), array_agg(on_complete),
                                     array_agg(context), array_agg(ending), array_agg(kept))
                            from told) end as untold,
               case when exists (select from closed where mod(epoch, 100) = 0)
                    then nursery_queue.trim_attempts(
                             array(select task_id from closed where mod(epoch, 100) = 0)) end,
               case when exists (select from unkept)
                    then nursery_queue.forget_streams(array(select task_id from unkept)) end,
               -- See forget(), which would run for each settlement, whatever it deletes.
               set_config('nursery_queue.tidy', 'own', true)
        offset 0) as others
  left join refused on true
