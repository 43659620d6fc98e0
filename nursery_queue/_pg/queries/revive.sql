-- Makes a failed or cancelled task ready again, with all its attempts ahead of it, unless another
-- live task has its dedup key by now. Walks finished_pkey and task_pkey.
with wanted as materialized (
    select task.id, task.queue, task.priority, task.task_type, task.dedup_key, finished.epoch
      from nursery_queue.finished
      join nursery_queue.task on task.id = finished.task_id
     where finished.task_id = %(id)s::bigint
       and finished.state = any(%(states)s::text[])
       for update of finished
), keyed as (
    insert into nursery_queue.dedup (dedup_key, task_id)
    select dedup_key, id from wanted where dedup_key is not null
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
    insert into nursery_queue.ready (task_id, queue, priority, task_type, epoch)
    select id, queue, priority, task_type, epoch from gone
    returning task_id
)
select count(*) > 0, case when count(*) > 0 then pg_notify('nursery_queue', '') end from placed
