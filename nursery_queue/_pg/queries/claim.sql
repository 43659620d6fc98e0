-- Takes up to `limit` ready tasks of the types and queues this worker serves, best priority
-- first, oldest first, never one that somebody else is taking at this moment. Walks
-- ready_key; the rows are picked once and then found by ctid, so no plan takes more. How many
-- may start of a queue is asked before any row is locked. The first `at_once` of them start at
-- once and are noted as started; the others are held ahead.
--
-- Bounded whatever there is: it looks at no more than `most_queues` queues, which nursery_queue.walk
-- finds from (`after_queue`, `after_type`) on, and says where the next claim is to go on (null:
-- it has come to the end); reads about 4 * `limit` + 500 positions and locks `limit`.
-- tests/pg/test_many_queues.py and test_plans.py hold it to that.
-- Always answers at least one row, for what it says of all of them.
with walked as materialized (
    select * from nursery_queue.walk(%(queues)s::text[], %(task_types)s::text[],
                                     %(after_queue)s::text, %(after_type)s::text,
                                     %(most_queues)s::int, %(most_steps)s::int)
), wanted (queue, slots) as materialized (
    select queue, coalesce(asked.slots, %(limit)s::int)
      from (select distinct unnest(lane_queues) as queue from walked) as served
      left join unnest(%(queues)s::text[], %(slots)s::int[]) as asked (queue, slots) using (queue)
), room (free) as materialized (
    select nursery_queue.room(array(select queue from wanted))
), offer (queue, slots, pool) as materialized (
    select queue,
           case when free ? queue then least(slots, (free ->> queue)::int, %(at_once)s::int)
                else slots end,
           case when free ? queue then queue end
      from wanted, room
     where coalesce((free ->> queue)::int, 1) > 0
       and exists (select from nursery_queue.worker where worker.id = %(worker_id)s::uuid and not dead)
), shared as materialized (
    -- How many of each lane are among the best.
    select shares.*, served.queues, served.types
      from (select array_agg(queue) as queues, array_agg(task_type) as types,
                   array_agg(offer.slots) as slots
              from walked
             cross join unnest(lane_queues, lane_types) as served (queue, task_type)
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
), got (queue, task_type, of_lane, of_queue) as materialized (
    -- Of all lanes that were walked, also those of queues that are full.
    select served.queue, served.task_type, count(picked.place),
           sum(count(picked.place)) over (partition by served.queue)
      from walked
     cross join unnest(lane_queues, lane_types) as served (queue, task_type)
      left join picked using (queue, task_type)
     group by served.queue, served.task_type
), answer (next_due, contended, held_back, strangers, more, resume_queue, resume_type) as (
    select (select extract(epoch from min(due_at) - nursery_queue.now())::float8
              from nursery_queue.scheduled),
           -- Some queue is being changed, or has more than we got, not for want of slots.
           exists (select from wanted, room where (free ->> queue)::int = -2)
           or (select count(*) from picked) < %(limit)s::int
           and not shared.more
           and exists (select
                         from got
                         join offer using (queue)
                        where of_queue < offer.slots
                          and exists (select from nursery_queue.ready
                                       where ready.queue = got.queue
                                         and ready.task_type = got.task_type
                                      offset of_lane)),
           -- Some queue has more than we got, and that is for want of slots.
           (select free from room) is not null
           and exists (select
                     from got
                     join wanted using (queue)
                     join room on (free ->> queue)::int >= 0
                    where of_queue < wanted.slots
                      and exists (select from nursery_queue.ready
                                   where ready.queue = got.queue
                                     and ready.task_type = got.task_type
                                  offset of_lane)),
           walked.strangers,
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
