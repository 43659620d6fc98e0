-- Makes up to `limit` scheduled tasks that are due ready, and rings if there were any.
-- Walks scheduled_due.
with due as materialized (
    select ctid as place from nursery_queue.scheduled
     where due_at <= nursery_queue.now()
     order by due_at, task_id
     limit %(limit)s::int
       for update skip locked
), taken as (
    delete from nursery_queue.scheduled
     where ctid = any(array(select place from due))
    returning task_id, due_at, attempt, epoch, lost
), placed as (
    insert into nursery_queue.ready (task_id, queue, priority, task_type, key, due_at,
                                     attempt, epoch, lost)
    select task.id, task.queue, task.priority, task.task_type, coalesce(task.key, ''),
           taken.due_at, taken.attempt, taken.epoch, taken.lost
      from taken
      join nursery_queue.task on task.id = taken.task_id
    returning task_id
)
select count(*), case when count(*) > 0 then pg_notify('nursery_queue', '') end from placed
