-- Which queues have ready tasks and no living worker that serves them, and of which task types that
-- none knows there are ready tasks; up to `most` of each. Looks at 1000 pairs of a queue and a type
-- that have ready tasks, and at as many that were put aside. Walks ready_key and parked_key.
with recursive pair (queue, task_type, number) as (
    -- One index probe each.
    select '', '', 0
     union all
    select next.queue, next.task_type, pair.number + 1
      from pair
     cross join lateral (select ready.queue, ready.task_type from nursery_queue.ready
                          where (ready.queue, ready.task_type) > (pair.queue, pair.task_type)
                          order by ready.queue, ready.task_type
                          limit 1) as next
     where pair.number < 1000
), aside (queue, task_type, number) as (
    select '', '', 0
     union all
    select next.queue, next.task_type, aside.number + 1
      from aside
     cross join lateral (select parked.queue, parked.task_type from nursery_queue.parked
                          where (parked.task_type, parked.queue) > (aside.task_type, aside.queue)
                          order by parked.task_type, parked.queue
                          limit 1) as next
     where aside.number < 1000
), waiting as materialized (
    select queue, task_type from pair where number > 0
     union
    select queue, task_type from aside where number > 0
), taker as materialized (
    select queues, task_types from nursery_queue.worker
     where nursery_queue.is_alive(worker) and not draining
), known as materialized (
    select distinct unnest(task_types) as task_type from taker
), served as materialized (
    select distinct unnest(queues) as queue from taker
)
select array(select queue from (select distinct queue from waiting) as queues
              where not exists (select from taker where taker.queues is null)
                and queue not in (select served.queue from served)
              order by queue collate "C"
              limit %(most)s::int) as queues,
       array(select task_type from (select distinct task_type from waiting) as types
              where task_type not in (select known.task_type from known)
              order by task_type collate "C"
              limit %(most)s::int) as task_types
 where exists (select from taker)
