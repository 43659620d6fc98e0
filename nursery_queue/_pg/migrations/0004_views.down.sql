-- Takes the views away.
drop view nursery_queue.task_attempt;
drop view nursery_queue.task_status;
