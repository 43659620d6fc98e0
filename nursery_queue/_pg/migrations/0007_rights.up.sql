-- Nobody may call anything but for what a bare insert calls by itself. Who is to do more is told
-- by name: roles.sql has a list for each kind of program.
revoke execute on all functions in schema nursery_queue from public;
grant execute on function
    nursery_queue.now(), nursery_queue.is_backoff(jsonb), nursery_queue.is_completion(jsonb),
    nursery_queue.recall(text), nursery_queue.all_stored(bigint, bigint),
    nursery_queue.store(json)
to public;
