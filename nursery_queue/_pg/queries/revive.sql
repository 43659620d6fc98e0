-- Makes a failed or cancelled task ready again, with all its attempts ahead of it, unless another
-- task has its dedup key by now, or it is taken for a while longer. Walks finished_pkey, task_pkey
-- and dedup_pkey.
with wanted as materialized (
    select task.id, task.queue, task.priority, task.task_type, task.key, task.dedup_key,
           finished.epoch
      from nursery_queue.finished
      join nursery_queue.task on task.id = finished.task_id
     where finished.task_id = %(id)s::bigint
       and finished.state = any(%(states)s::text[])
       for update of finished
), freed as (
    delete from nursery_queue.dedup
     where dedup_key = (select dedup_key from wanted)
       and (task_id = (select id from wanted) or not nursery_queue.is_taken(task_id, until))
    returning task_id, until, prune_at
), keyed as (
    -- After the deletion, whose rows it counts.
    insert into nursery_queue.dedup (dedup_key, task_id, until, prune_at)
    select dedup_key, id, (select until from freed where task_id = id),
           coalesce((select prune_at from freed where task_id = id),
                    nursery_queue.now() + interval '1 hour')
      from wanted
     where dedup_key is not null and (select count(*) from freed) >= 0
        on conflict do nothing
    returning task_id
), gone as (
    delete from nursery_queue.finished
     using wanted
     where finished.task_id = wanted.id
       and (wanted.dedup_key is null or exists (select from keyed))
    returning wanted.*
), told_anew as (
    delete from nursery_queue.untold where task_id in (select id from gone)
), placed as (
    insert into nursery_queue.ready (task_id, queue, priority, task_type, key, epoch)
    select id, queue, priority, task_type, coalesce(key, ''), epoch from gone
    returning task_id
)
select count(*) > 0, case when count(*) > 0 then pg_notify('nursery_queue', '') end from placed
