-- Tasks inserted from now on get no position.
drop function nursery_queue.enqueue_many(json);
drop function nursery_queue.enqueue(text, jsonb, text, integer, timestamptz, double precision,
                                    integer, jsonb, double precision, double precision, text,
                                    jsonb, jsonb, text, double precision, double precision,
                                    double precision);
drop function nursery_queue.store(json);
drop function nursery_queue.all_stored(bigint, bigint);
drop trigger place on nursery_queue.task;
drop function nursery_queue.place();
drop function nursery_queue.is_taken(bigint, timestamptz);
drop trigger as_declared on nursery_queue.task;
drop function nursery_queue.as_declared();
drop function nursery_queue.recall(text);
