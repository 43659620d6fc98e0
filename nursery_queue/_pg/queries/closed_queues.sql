-- Which of these queues are to start nothing: they are paused, or have more tasks running than they
-- may, of all or of a key. Walks queue_pkey and running_pool.
select name from nursery_queue.queue
 where name = any(%(queues)s::text[])
   and (paused or max_running is not null
                  and exists (select from nursery_queue.running
                               where running.pool = name
                              offset queue.max_running)
               or max_running_per_key is not null
                  and exists (select from nursery_queue.running
                               where running.pool = name and key <> ''
                               group by key
                              having count(*) > max_running_per_key))
