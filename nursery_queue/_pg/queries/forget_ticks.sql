-- Forgets up to `limit` ticks that had their task long ago. Walks tick_expires.
with old as materialized (
    select ctid as place from nursery_queue.tick
     where expires_at <= nursery_queue.now()
     order by expires_at
     limit %(limit)s::int
       for update skip locked
), gone as (
    delete from nursery_queue.tick where ctid = any(array(select place from old)) returning 1
)
select count(*) from gone
