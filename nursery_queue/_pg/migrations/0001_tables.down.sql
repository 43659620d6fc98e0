-- Takes the tables of the queue away, with every task in them.
drop table nursery_queue.worker;
drop table nursery_queue.queue;
drop table nursery_queue.dedup;
drop table nursery_queue.attempt;
drop table nursery_queue.finished;
drop table nursery_queue.running;
drop table nursery_queue.parked;
drop table nursery_queue.ready;
drop table nursery_queue.scheduled;
drop table nursery_queue.task;
drop table nursery_queue.task_type;
drop function nursery_queue.is_completion(jsonb);
drop function nursery_queue.is_backoff(jsonb);
drop function nursery_queue.clock();
drop function nursery_queue.now();
