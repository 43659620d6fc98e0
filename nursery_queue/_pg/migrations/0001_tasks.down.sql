-- Takes the tables of the queue away, with every task in them.
drop view nursery_queue.task_attempt;
drop view nursery_queue.task_status;
drop function nursery_queue.cancel(bigint, boolean);
drop function nursery_queue.enqueue(text, jsonb, text, integer, timestamptz, double precision,
                                    integer, jsonb, double precision, double precision, text);
drop table nursery_queue.worker;
drop table nursery_queue.queue;
drop table nursery_queue.dedup;
drop table nursery_queue.attempt;
drop table nursery_queue.finished;
drop table nursery_queue.running;
drop table nursery_queue.ready;
drop table nursery_queue.scheduled;
drop table nursery_queue.task;
drop function nursery_queue.place();
drop function nursery_queue.now();
