-- Takes workers whose lease has run out, by the database's clock, for dead: from now on they renew
-- and claim no more, and others take their tasks. The clock may have been set back, or be that of
-- another server by now: a heartbeat from a future that no lease reaches counts as one of this
-- instant, so that nobody outlives his lease by as much. And it may have jumped ahead: later than
-- `clock_by` nobody is taken for dead who may only have had no time to renew his lease since
-- (tests/engine/test_clock_jumps.py). Walks worker_pkey; waits for nobody.
with clock as materialized (
    -- Not when the statement came: it may have waited for the table.
    select nursery_queue.now() + (clock_timestamp() - statement_timestamp()) as instant
), ahead as (
    update nursery_queue.worker set heartbeat_at = instant
      from clock
     where ctid = any(array(
        select ctid from nursery_queue.worker
         where not dead
           and heartbeat_at > (select instant from clock) + make_interval(secs => lease)
           for update skip locked))
), overdue as materialized (
    select ctid as place from nursery_queue.worker
     where not dead and heartbeat_at < nursery_queue.now() - make_interval(secs => lease)
       and extract(epoch from (select instant from clock)) <= %(clock_by)s::float8
       for update skip locked
), declared as (
    update nursery_queue.worker set dead = true
     where ctid = any(array(select place from overdue))
    returning id
)
select id from declared
 union
select id from nursery_queue.worker where dead
