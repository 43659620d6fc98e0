-- Takes up to `limit` ready tasks of the types and queues this worker serves, best priority
-- first, oldest first, never one that somebody else is taking at this moment. Walks
-- ready_key; the rows are picked once and then found by ctid, so no plan takes more.
-- Always answers at least one row, for next_due.
with recursive lane (queue) as (
    -- Every queue that has ready tasks, one index probe each.
    (select queue from nursery_queue.ready order by queue limit 1)
    union all
    select (select next.queue from nursery_queue.ready as next
             where next.queue > lane.queue order by next.queue limit 1)
      from lane
     where lane.queue is not null
), offer (queue, slots) as (
    select queue, %(limit)s::int from lane
     where %(queues)s::text[] is null and queue is not null
    union all
    select * from unnest(%(queues)s::text[], %(slots)s::int[])
), picked as materialized (
    select found.place
      from offer
     cross join lateral (select ready.ctid as place, ready.priority, ready.task_id
                           from nursery_queue.ready
                          where ready.queue = offer.queue
                            and ready.task_type = any(%(task_types)s::text[])
                          order by ready.priority desc, ready.task_id
                          limit offer.slots
                            for update skip locked) as found
     where not exists (select from nursery_queue.queue
                        where queue.name = offer.queue and queue.paused)
       and exists (select from nursery_queue.worker where worker.id = %(worker_id)s::uuid)
     order by found.priority desc, found.task_id
     limit %(limit)s::int
), taken as (
    delete from nursery_queue.ready
     where ctid = any(array(select place from picked))
    returning task_id, attempt + 1 as attempt, epoch + 1 as epoch, lost
), held as (
    insert into nursery_queue.running (task_id, worker_id, attempt, epoch, lost, started_at)
    select task_id, %(worker_id)s::uuid, attempt, epoch, lost, nursery_queue.now()
      from taken
)
select (select extract(epoch from min(due_at) - nursery_queue.now())::float8
          from nursery_queue.scheduled) as next_due,
       task.id, taken.epoch, taken.attempt, taken.lost, task.task_type, task.queue,
       task.params::text, task.max_attempts, task.backoff, task.timeout, task.keep_for
  from (values (1)) as answer
  -- Looked up one by one: a join may be planned as a walk through all tasks (offset 0).
  left join (taken cross join lateral (select * from nursery_queue.task
                                        where task.id = taken.task_id offset 0) as task) on true
 order by task.priority desc, task.id
