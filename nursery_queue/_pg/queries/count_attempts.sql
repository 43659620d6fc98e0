-- Counts closed attempts by queue, outcome and whether the task ended with them. Reads the whole
-- log.
select task.queue, way.outcome, way.final, sum(way.times)::bigint as count
  from (select task_id, outcome, final, count(*) as times
          from nursery_queue.attempt
         group by task_id, outcome, final
         union all
        select task_id, split_part(key, ' ', 1), right(key, 6) = ' final', value::bigint
          from nursery_queue.attempt, jsonb_each_text(earlier)
         where earlier is not null) as way
  join nursery_queue.task on task.id = way.task_id
 group by task.queue, way.outcome, way.final
