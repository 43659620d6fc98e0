-- Workers whose lease has run out, by the database's clock; held until the sweep is over.
select id from nursery_queue.worker
 where heartbeat_at < nursery_queue.now() - make_interval(secs => lease)
 order by id
   for update skip locked
