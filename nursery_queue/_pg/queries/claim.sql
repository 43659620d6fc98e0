-- Takes ready tasks: see the function, which answers a row for each and one for all together.
select *
  from nursery_queue.claim(
           %(worker_id)s::uuid, %(task_types)s::text[], %(queues)s::text[], %(slots)s::int[],
           %(limit)s::int, %(at_once)s::int, %(soon)s::int, %(after_queue)s::text,
           %(after_type)s::text, %(after_lane)s::text, %(most_queues)s::int, %(most_steps)s::int)
