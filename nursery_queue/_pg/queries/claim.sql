-- Takes up to `limit` ready tasks of the types and queues this worker serves, best priority
-- first, oldest first, never one that somebody else is taking at this moment. Walks
-- ready_key; the rows are picked once and then found by ctid, so no plan takes more. How many
-- may start of a queue is asked before any row is locked.
-- Always answers at least one row, for what it says of all of them.
with recursive lane (queue) as (
    -- Every queue that has ready tasks, one index probe each.
    (select queue from nursery_queue.ready order by queue limit 1)
    union all
    select (select next.queue from nursery_queue.ready as next
             where next.queue > lane.queue order by next.queue limit 1)
      from lane
     where lane.queue is not null
), wanted (queue, slots) as materialized (
    select queue, %(limit)s::int from lane
     where %(queues)s::text[] is null and queue is not null
    union all
    select * from unnest(%(queues)s::text[], %(slots)s::int[])
), room (free) as materialized (
    select nursery_queue.room(array(select queue from wanted))
), offer (queue, slots, pool) as materialized (
    select queue,
           case when free ? queue then least(slots, (free ->> queue)::int, %(at_once)s::int)
                else slots end,
           case when free ? queue then queue end
      from wanted, room
     where coalesce((free ->> queue)::int, 1) > 0
       and exists (select from nursery_queue.worker where worker.id = %(worker_id)s::uuid)
), picked as materialized (
    select found.place, offer.queue, offer.pool
      from offer
     cross join lateral (select ready.ctid as place, ready.priority, ready.task_id
                           from nursery_queue.ready
                          where ready.queue = offer.queue
                            and ready.task_type = any(%(task_types)s::text[])
                          order by ready.priority desc, ready.task_id
                          limit offer.slots
                            for update skip locked) as found
     order by found.priority desc, found.task_id
     limit %(limit)s::int
), taken as (
    delete from nursery_queue.ready
     where ctid = any(array(select place from picked))
    returning task_id, queue, attempt + 1 as attempt, epoch + 1 as epoch, lost,
              extract(epoch from nursery_queue.now() - due_at)::float8 as lag
), held as (
    insert into nursery_queue.running (task_id, worker_id, attempt, epoch, lost, started_at, pool)
    select task_id, %(worker_id)s::uuid, attempt, epoch, lost, nursery_queue.now(),
           (select pool from offer where offer.queue = taken.queue limit 1)
      from taken
), answer (next_due, contended, held_back, strangers) as (
    select (select extract(epoch from min(due_at) - nursery_queue.now())::float8
              from nursery_queue.scheduled),
           -- Some queue is being changed, or has more than we got, not for want of slots.
           exists (select from wanted, room where (free ->> queue)::int = -2)
           or (select count(*) from picked) < %(limit)s::int
           and exists (select
                         from offer
                        cross join lateral (select count(*) as n from picked
                                             where picked.queue = offer.queue) as got
                        where got.n < offer.slots
                          and exists (select from nursery_queue.ready
                                       where ready.queue = offer.queue
                                         and ready.task_type = any(%(task_types)s::text[])
                                      offset got.n)),
           -- Some queue has more than we got, and that is for want of slots.
           exists (select
                     from wanted
                     join room on (free ->> wanted.queue)::int >= 0
                    cross join lateral (select count(*) as n from picked
                                         where picked.queue = wanted.queue) as got
                    where got.n < wanted.slots
                      and exists (select from nursery_queue.ready
                                   where ready.queue = wanted.queue
                                     and ready.task_type = any(%(task_types)s::text[])
                                  offset got.n)),
           exists (select
                     from offer
                    cross join lateral (select ready.task_type from nursery_queue.ready
                                         where ready.queue = offer.queue
                                         order by ready.priority desc, ready.task_id
                                         limit 1) as head
                    where head.task_type <> all(%(task_types)s::text[]))
)
select answer.*,
       task.id, taken.epoch, taken.attempt, taken.lost, taken.lag, task.task_type, task.queue,
       task.params::text, task.max_attempts, task.backoff, task.timeout, task.keep_for,
       task.on_complete is not null, task.completes
  from answer
  -- Looked up one by one: a join may be planned as a walk through all tasks (offset 0).
  left join (taken cross join lateral (select * from nursery_queue.task
                                        where task.id = taken.task_id offset 0) as task) on true
 order by task.priority desc, task.id
