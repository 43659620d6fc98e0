-- There is nothing to see any more.
drop view nursery_queue.task_attempt;
drop view nursery_queue.task_status;
