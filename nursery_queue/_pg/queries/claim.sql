-- Takes up to `limit` ready tasks of the types and queues this worker serves, best priority first,
-- oldest first, never one that another claim is taking at this moment. Walks ready_key; the rows
-- are picked once and then found by ctid, so no plan takes more. How many may start of a queue is
-- asked before any row is locked. The first `at_once` of them start at once and are noted as
-- started; the others are held ahead.
--
-- Bounded however many tasks and queues there are: it looks at no more than `most_queues` queues,
-- which nursery_queue.walk finds from (`after_queue`, `after_type`) on, and says where the next
-- claim is to go on (null: it has come to the end); reads about 4 * `limit` + 500 positions and
-- locks `limit`. tests/pg/test_many_queues.py and test_plans.py hold it to that. Always answers at
-- least one row, which carries the answer as a whole.
with walked as materialized (
    select * from nursery_queue.walk(%(queues)s::text[], %(task_types)s::text[],
                                     %(after_queue)s::text, %(after_type)s::text,
                                     %(most_queues)s::int, %(most_steps)s::int)
), wanted (queue, slots) as materialized (
    select queue, coalesce(asked.slots, %(limit)s::int)
      from (select distinct unnest(pair_queues) as queue from walked) as served
      left join unnest(%(queues)s::text[], %(slots)s::int[]) as asked (queue, slots) using (queue)
), room as materialized (
    select queue, free, changing from nursery_queue.room(array(select queue from wanted))
), offer (queue, slots, pool) as materialized (
    select wanted.queue,
           case when room.queue is null then slots else least(slots, free, %(at_once)s::int) end,
           room.queue
      from wanted
      left join room on room.queue = wanted.queue
     where (room.queue is null or free > 0)
       and exists (select from nursery_queue.worker
                    where worker.id = %(worker_id)s::uuid and not dead)
), shared as materialized (
    -- How many of each pair are among the best.
    select shares.*, served.queues, served.types
      from (select array_agg(queue) as queues, array_agg(task_type) as types,
                   array_agg(offer.slots) as slots
              from walked
             cross join unnest(pair_queues, pair_types) as served (queue, task_type)
              join offer using (queue)) as served
     cross join nursery_queue.shares(queues, types, slots, %(limit)s::int) as shares
), picked as materialized (
    select found.place, share.queue, share.task_type
      from shared
     cross join unnest(shared.queues, shared.types, shared.most) as share (queue, task_type, most)
     cross join lateral (select ready.ctid as place
                           from nursery_queue.ready
                          where ready.queue = share.queue
                            and ready.task_type = share.task_type
                          order by ready.priority desc, ready.task_id
                          limit share.most
                            for update skip locked) as found
), taken as (
    delete from nursery_queue.ready
     where ctid = any(array(select place from picked))
    returning task_id, queue, priority, attempt + 1 as attempt, epoch + 1 as epoch, lost, suspect,
              extract(epoch from nursery_queue.now() - due_at)::float8 as lag
), held as (
    insert into nursery_queue.running (task_id, worker_id, attempt, epoch, lost, started_at, pool,
                                       started, suspect)
    select task_id, %(worker_id)s::uuid, attempt, epoch, lost, nursery_queue.now(),
           (select pool from offer where offer.queue = taken.queue limit 1),
           row_number() over (order by priority desc, task_id)
               <= coalesce(%(at_once)s::int, %(limit)s::int), suspect
      from taken
), got (queue, task_type, of_pair, of_queue) as materialized (
    -- Of all pairs that were walked, also of queues that are full.
    select served.queue, served.task_type, count(picked.place),
           sum(count(picked.place)) over (partition by served.queue)
      from walked
     cross join unnest(pair_queues, pair_types) as served (queue, task_type)
      left join picked using (queue, task_type)
     group by served.queue, served.task_type
), left_over as (
    -- Pairs with more tasks than were taken, though this worker has slots for them. Read only as
    -- far as the two questions below ask.
    select of_queue < offer.slots as offered, room.free is not null as has_limit
      from got
      join wanted using (queue)
      left join offer using (queue)
      left join room using (queue)
     where of_queue < wanted.slots
       and exists (select from nursery_queue.ready
                    where ready.queue = got.queue and ready.task_type = got.task_type
                   offset of_pair)
), answer (next_due, contended, held_back, unknown_types, more, resume_queue, resume_type) as (
    select (select extract(epoch from min(due_at) - nursery_queue.now())::float8
              from nursery_queue.scheduled),
           -- Some queue is being changed, or has more than we got, not for want of slots.
           exists (select from room where changing)
           or (select count(*) from picked) < %(limit)s::int
              and not shared.more
              and exists (select from left_over where offered),
           -- Some queue has more than we got, for want of slots.
           exists (select from room where free is not null)
           and exists (select from left_over where has_limit),
           walked.unknown_types,
           (select count(*) from picked) < %(limit)s::int and shared.more,
           walked.resume_queue, walked.resume_type
      from walked, shared
)
select answer.*,
       task.id, taken.epoch, taken.attempt, taken.lost, taken.lag, task.task_type, task.queue,
       task.params::text, task.max_attempts, task.backoff, task.timeout, task.keep_for,
       task.on_complete is not null, task.completes, taken.suspect
  from answer
  -- Looked up one by one: a join may be planned as a walk through all tasks (offset 0).
  left join (taken cross join lateral (select * from nursery_queue.task
                                        where task.id = taken.task_id offset 0) as task) on true
 order by task.priority desc, task.id
