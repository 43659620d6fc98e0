-- Stores tasks; the trigger places them and rings. Walks no index but the primary key. The tasks
-- come as one text, since the meaning of an array depends on settings of the session, which may be
-- the user's (tests/producers/test_settings.py).
select id from nursery_queue.store(%(tasks)s::json) as id order by id
