-- Does what settle.sql does for a batch of which all have succeeded, are kept, and have nobody to
-- be told: most batches, for three quarters of what that takes of the server. Answers which it has
-- left alone (null: none), for settle.sql to find the reason. Walks running_pkey and worker_pkey;
-- tests/pg/test_plans.py holds it.
with settled as materialized (
    select * from unnest(%(task_ids)s::bigint[], %(epochs)s::int[], %(attempts)s::int[],
                         %(losts)s::int[], %(keep_fors)s::float8[], %(results)s::text[])
    as settled (task_id, epoch, attempt, lost, keep_for, result)
), mine as materialized (
    select settled.*, found.place
      from settled
     cross join lateral (select ctid as place from nursery_queue.running
                          where running.task_id = settled.task_id
                            and running.epoch = settled.epoch
                            for update skip locked) as found
), closed as (
    delete from nursery_queue.running
     using mine
     where running.ctid = mine.place
    returning running.worker_id, running.started_at, running.pool, mine.*
), named as materialized (
    -- Once a batch: it is of one worker, and of a few where what they have lost is settled.
    select id, name from nursery_queue.worker
     where id = any(array(select distinct worker_id from closed))
), logged as (
    insert into nursery_queue.attempt (task_id, epoch, outcome, worker_id, started_at,
                                       finished_at, final, worker_name)
    select task_id, epoch, 'succeeded', worker_id, started_at, nursery_queue.now(), true,
           (select name from named where named.id = closed.worker_id)
      from closed
), ended as (
    insert into nursery_queue.finished (task_id, state, attempt, epoch, lost, finished_at,
                                        expires_at, result)
    select task_id, 'succeeded', attempt, epoch, lost, nursery_queue.now(),
           nursery_queue.now() + make_interval(secs => keep_for), result::jsonb
      from closed
), freed as (
    delete from nursery_queue.dedup
     where ctid = any(array(
        select ctid from nursery_queue.dedup
         where task_id = any(array(select task_id from closed))
           and coalesce(until <= nursery_queue.now(), true)
           for update skip locked))
)
-- Rings as settle.sql does, for workers that have found a queue full, and for who waits for ends.
select case when (select count(*) from closed) < (select count(*) from settled)
            then array(select array[settled.task_id, settled.epoch]
                         from settled
                         left join closed using (task_id, epoch)
                        where closed.task_id is null) end as left_alone,
       case when exists (select from closed)
            then pg_notify('nursery_queue_finished', '') end,
       case when exists (select from closed where pool is not null)
            then pg_notify('nursery_queue', '') end
