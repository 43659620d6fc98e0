-- Takes workers for dead: from now on they renew and claim no more, and others take their tasks.
-- The lease has run out by the database's clock; but that may have jumped. So the caller has also
-- seen the same heartbeat, by its own clock, for the time to the next one and a second (MARGIN); or
-- for the whole lease, whatever the database's clock says, which may have been set back since
-- (tests/engine/test_clock_jumps.py). Null: the caller has seen no heartbeats, and the database's
-- clock is believed. Walks worker_pkey; waits for no lock.
with overdue as materialized (
    select ctid as place from nursery_queue.worker
     where not dead
       and case when %(ids)s::uuid[] is null
                then heartbeat_at < nursery_queue.now() - make_interval(secs => lease)
                else exists (
                    select from unnest(%(ids)s::uuid[], %(heartbeats)s::timestamptz[],
                                       %(seconds)s::float8[]) as seen (id, heartbeat_at, seconds)
                     where seen.id = worker.id and seen.heartbeat_at = worker.heartbeat_at
                       and (seen.seconds >= worker.lease
                            or seen.seconds >= worker.heartbeat + 1
                               and worker.heartbeat_at
                                   < nursery_queue.now() - make_interval(secs => worker.lease)))
           end
       for update skip locked
), declared as (
    update nursery_queue.worker set dead = true
     where ctid = any(array(select place from overdue))
    returning id
)
select id from declared
 union
select id from nursery_queue.worker where dead
