-- Deletes up to `limit` rows of the rates of queues and keys that have not been used lately, and as
-- many turns that were taken more than a day ago: nothing is known by them any more. Both tables are read from
-- end to end: they have a row for each queue, and for each key that was served of late.
with unused as (
    delete from nursery_queue.rate
     where ctid = any(array(select ctid from nursery_queue.rate
                             where next_at < nursery_queue.now()
                             limit %(limit)s::int
                               for update skip locked))
    returning queue
), old as (
    delete from nursery_queue.turn
     where ctid = any(array(select ctid from nursery_queue.turn
                             where served_at < nursery_queue.now() - interval '1 day'
                             limit %(limit)s::int
                               for update skip locked))
    returning queue
)
select (select count(*) from unused) + (select count(*) from old) as count
