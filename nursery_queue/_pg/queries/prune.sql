-- Deletes up to `limit` tasks that ended longer ago than they are kept, with their log.
-- Never a live one. Walks finished_expires, attempt_pkey and task_pkey.
with old as materialized (
    select ctid as place from nursery_queue.finished
     where expires_at <= nursery_queue.now()
     order by expires_at
     limit %(limit)s::int
       for update skip locked
), gone as (
    delete from nursery_queue.finished
     where ctid = any(array(select place from old))
    returning task_id
), attempts as (
    delete from nursery_queue.attempt where task_id = any(array(select task_id from gone))
), tasks as (
    delete from nursery_queue.task where id = any(array(select task_id from gone))
)
select count(*) from gone
