-- How many tasks of these types are among the first `most` due ones of these queues (null: of
-- all); no more are looked at, however many there are. Walks ready_key and scheduled_due.
with recursive lane (queue) as (
    -- Every queue that has ready tasks, one index probe each.
    (select queue from nursery_queue.ready order by queue limit 1)
    union all
    select (select next.queue from nursery_queue.ready as next
             where next.queue > lane.queue order by next.queue limit 1)
      from lane
     where lane.queue is not null
), wanted (queue) as (
    select queue from lane where %(queues)s::text[] is null and queue is not null
    union all
    select unnest(%(queues)s::text[])
), late as (
    select task_id from nursery_queue.scheduled
     where due_at <= nursery_queue.now()
     order by due_at, task_id
     limit %(most)s::int
), first (task_type) as (
    (select waiting.task_type
       from wanted
      cross join lateral (select ready.task_type from nursery_queue.ready
                           where ready.queue = wanted.queue
                           order by ready.priority desc, ready.task_id
                           limit %(most)s::int) as waiting
      limit %(most)s::int)
    union all
    -- Due, and nobody has made them ready yet.
    select task.task_type
      from late
     cross join lateral (select * from nursery_queue.task
                          where task.id = late.task_id offset 0) as task
     where %(queues)s::text[] is null or task.queue = any(%(queues)s::text[])
)
select count(*)
  from (select task_type from first limit %(most)s::int) as looked_at
 where task_type = any(%(task_types)s::text[])
