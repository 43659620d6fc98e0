-- Forgets dead workers. Walks worker_pkey.
delete from nursery_queue.worker where id = any(%(dead)s::uuid[])
