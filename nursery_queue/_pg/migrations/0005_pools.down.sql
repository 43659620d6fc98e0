-- Limits are no longer kept; parked tasks may be claimed again.
insert into nursery_queue.ready (task_id, queue, priority, task_type, key, due_at, attempt, epoch,
                                 lost, suspect)
select task_id, queue, priority, task_type, key, due_at, attempt, epoch, lost, suspect
  from nursery_queue.parked;
delete from nursery_queue.parked;
drop function nursery_queue.unpark(text[], integer);
drop function nursery_queue.park(integer, text, text, integer);
drop function nursery_queue.room(text[], integer, integer, integer);
drop function nursery_queue.tokens(timestamptz, integer, double precision, integer);
drop function nursery_queue.allowed_at(timestamptz, integer, double precision, integer);
drop function nursery_queue.believed(timestamptz, integer, double precision, integer);
drop function nursery_queue.span(bigint, integer, double precision);
drop table nursery_queue.rate;
drop function nursery_queue.shares(text[], text[], integer[], integer, integer[]);
drop function nursery_queue.walk(text[], text[], text, text, integer, integer);
drop function nursery_queue.is_limited(nursery_queue.queue);
drop trigger count_rates_of_changed on nursery_queue.queue;
drop trigger count_rates_of_new on nursery_queue.queue;
drop trigger count_and_ring on nursery_queue.queue;
drop trigger change_alone on nursery_queue.queue;
drop function nursery_queue.count_rates();
drop function nursery_queue.count_and_ring();
drop function nursery_queue.change_alone();
