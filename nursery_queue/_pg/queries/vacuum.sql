-- Removes the dead rows that claims would step over until autovacuum comes, after very many tasks
-- have left the head of a queue. Waits for no lock; a role that may not vacuum gets a warning.
vacuum (skip_locked, truncate off) nursery_queue.ready
