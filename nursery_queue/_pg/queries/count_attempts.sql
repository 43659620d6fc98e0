-- How many attempts have ended in which way, by queue. Reads the whole log.
select task.queue, attempt.outcome, attempt.final, count(*)
  from nursery_queue.attempt
  join nursery_queue.task on task.id = attempt.task_id
 group by task.queue, attempt.outcome, attempt.final
