-- Is there anything to sweep? Walks worker_pkey; running is small.
select exists (select from nursery_queue.worker
                where heartbeat_at < nursery_queue.now() - make_interval(secs => lease))
    or exists (select from nursery_queue.running
                where not exists (select from nursery_queue.worker
                                   where worker.id = running.worker_id))
