-- Takes workers whose lease has run out, by the database's clock, for dead: from now on they renew
-- and claim no more, and others take their tasks. Walks worker_pkey; waits for nobody.
with overdue as materialized (
    select ctid as place from nursery_queue.worker
     where not dead and heartbeat_at < nursery_queue.now() - make_interval(secs => lease)
       for update skip locked
), declared as (
    update nursery_queue.worker set dead = true
     where ctid = any(array(select place from overdue))
    returning id
)
select id from declared
 union
select id from nursery_queue.worker where dead
