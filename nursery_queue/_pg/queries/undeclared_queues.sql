-- Which of these queues are not stored as code declares them, in the order of their names.
-- `declared`: values by column, by queue. Walks queue_pkey.
select asked.key as name
  from jsonb_each(%(declared)s::jsonb) as asked
  left join nursery_queue.queue on queue.name = asked.key
 where queue.declared is distinct from asked.value
 order by asked.key
