-- Forgets dead workers that hold nothing any more; answers which tasks of `left` no live worker
-- holds. Walks worker_pkey and running_pkey.
with still as materialized (
    select task_id, worker_id from nursery_queue.running
     where task_id = any(%(left)s::bigint[])
       and not exists (select from nursery_queue.worker
                        where worker.id = running.worker_id and not dead)
), gone as (
    delete from nursery_queue.worker
     where id = any(%(dead)s::uuid[]) and dead
       and id <> all(array(select worker_id from still))
)
select array(select task_id from still order by task_id)
