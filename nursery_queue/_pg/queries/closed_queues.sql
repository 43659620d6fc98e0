-- Which of these queues are to start nothing: they are paused, or have more tasks running than they
-- may. Walks queue_pkey and running_pool.
select name from nursery_queue.queue
 where name = any(%(queues)s::text[])
   and (paused or max_running is not null
                  and exists (select from nursery_queue.running
                               where running.pool = name
                              offset queue.max_running))
