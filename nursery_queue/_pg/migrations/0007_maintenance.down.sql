-- Rows deleted by hand leave their traces again, and a refused row stops the batch it is in.
drop trigger forget_all on nursery_queue.task;
drop function nursery_queue.forget_all();
drop trigger forget on nursery_queue.task;
drop function nursery_queue.forget();
drop function nursery_queue.trim_attempts(bigint[]);
drop function nursery_queue.unpark_each(text[], integer);
drop function nursery_queue.park_each(integer);
drop function nursery_queue.prune_each(integer);
drop function nursery_queue.promote_each(integer);
drop function nursery_queue.refuse(bigint, text, text, text);
drop function nursery_queue.set_aside(bigint, text, text);
