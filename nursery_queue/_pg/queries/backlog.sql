-- How many tasks of these types are due in these queues (null: in all), up to `most`; no more are
-- looked at, however many there are, and no more than 1000 pairs of a queue and a type. Walks
-- ready_key and scheduled_due.
with recursive pair (queue, task_type, number) as (
    -- Every pair that has ready tasks, one index probe each.
    select '', '', 0
     where %(queues)s::text[] is null
     union all
    select next.queue, next.task_type, pair.number + 1
      from pair
     cross join lateral (select ready.queue, ready.task_type from nursery_queue.ready
                          where (ready.queue, ready.task_type) > (pair.queue, pair.task_type)
                          order by ready.queue, ready.task_type
                          limit 1) as next
     where pair.number < 1000
), wanted (queue, task_type) as (
    select queue, task_type from pair where task_type = any(%(task_types)s::text[])
     union all
    select queue, task_type from unnest(%(queues)s::text[]) as queue
     cross join unnest(%(task_types)s::text[]) as task_type
), late as (
    select task_id from nursery_queue.scheduled
     where due_at <= nursery_queue.now()
     order by due_at, task_id
     limit %(most)s::int
), first as (
    (select
       from wanted
      cross join lateral (select from nursery_queue.ready
                           where ready.queue = wanted.queue
                             and ready.task_type = wanted.task_type
                           order by ready.priority desc, ready.key, ready.task_id
                           limit %(most)s::int) as waiting
      limit %(most)s::int)
    union all
    -- Due, and not made ready yet.
    (select
       from late
      cross join lateral (select * from nursery_queue.task
                           where task.id = late.task_id offset 0) as task
      where (%(queues)s::text[] is null or task.queue = any(%(queues)s::text[]))
        and task.task_type = any(%(task_types)s::text[]))
)
select count(*) from (select from first limit %(most)s::int) as counted
