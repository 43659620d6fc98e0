-- Takes the positions that `abandoned` has found, if they are abandoned still and no open
-- transaction holds them, to be settled in the same transaction. A claim that is not known to have
-- started is marked as suspect, and a position without a task deleted. Walks running_pkey,
-- worker_pkey and task_pkey.
with taken as materialized (
    select ctid as place, task_id from nursery_queue.running
     where task_id = any(%(ids)s::bigint[])
       and (not exists (select from nursery_queue.worker
                         where worker.id = running.worker_id and not dead)
            or not exists (select from nursery_queue.task where task.id = running.task_id))
     order by task_id
       for update skip locked
), orphans as (
    delete from nursery_queue.running
     where ctid = any(array(
        select place from taken
         where not exists (select from nursery_queue.task where task.id = taken.task_id)))
    -- Rung here, since a branch that deletes runs to its end also where nothing else was taken: a
    -- slot is free.
    returning case when pool is not null then pg_notify('nursery_queue', '') end
), suspected as (
    update nursery_queue.running set suspect = true
     where ctid = any(array(
        select place from taken
         where exists (select from nursery_queue.task where task.id = taken.task_id)))
       and not started and not suspect
)
select running.task_id, running.epoch, running.attempt, running.lost, running.worker_id,
       running.cancel_requested_at is not null as cancel_requested,
       coalesce(task.keep_for, declared.keep_for, 86400) as keep_for,
       task.on_complete is not null as on_complete, task.task_type, task.queue,
       extract(epoch from nursery_queue.now() - running.started_at)::float8 as age,
       running.started, (worker.max_lost ->> task.task_type)::int as max_lost
  from taken
  join nursery_queue.running on running.task_id = taken.task_id
  join nursery_queue.task on task.id = running.task_id
  left join nursery_queue.task_type as declared on declared.name = task.task_type
  left join nursery_queue.worker on worker.id = running.worker_id
 order by running.task_id
