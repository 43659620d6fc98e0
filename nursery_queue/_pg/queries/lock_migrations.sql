-- One migrates at a time; the others wait for its transaction to end.
select pg_advisory_xact_lock(hashtext('nursery_queue.migration'))
