-- No role may call anything but the functions that a bare insert calls by itself. roles.sql grants
-- more, by name, to each kind of program (tests/pg/test_rights.py).
revoke execute on all functions in schema nursery_queue from public;
grant execute on function
    nursery_queue.now(), nursery_queue.is_backoff(jsonb), nursery_queue.is_completion(jsonb),
    nursery_queue.recall(text), nursery_queue.all_stored(bigint, bigint),
    nursery_queue.store(json)
to public;
