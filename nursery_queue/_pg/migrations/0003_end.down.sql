-- Nothing is cancelled any more, and no end told.
drop function nursery_queue.cancel_page(text, text, timestamptz, bigint, bigint, integer, boolean);
drop function nursery_queue.cancel(bigint, boolean);
drop function nursery_queue.cancel_many(bigint[], boolean);
drop function nursery_queue.complete(bigint[], jsonb[], jsonb[], jsonb[], boolean[]);
drop function nursery_queue.task_may_refuse();
drop function nursery_queue.tell(bigint[], jsonb[], jsonb[], jsonb[]);
drop function nursery_queue.is_of_row(text);
drop function nursery_queue.passes(text);
drop table nursery_queue.untold;
drop function nursery_queue.ending(text, jsonb, text, text, boolean);
