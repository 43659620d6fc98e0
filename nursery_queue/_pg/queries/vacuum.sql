-- Takes away what claims would step over until autovacuum comes, after a mass of tasks has
-- gone at the head of a queue. Waits for nobody; for roles that may not, a warning is all.
vacuum (skip_locked, truncate off) nursery_queue.ready
