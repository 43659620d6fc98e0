-- Renews a lease. No row: others took this worker for dead. Also answers which of its tasks
-- somebody wants cancelled, whether another worker is overdue, and what the clock says. Walks
-- worker_pkey and running_cancel.
update nursery_queue.worker
   set heartbeat_at = nursery_queue.now(), draining = %(draining)s::boolean
 where id = %(id)s::uuid and not dead
returning (select coalesce(jsonb_agg(jsonb_build_array(task_id, epoch, cancel_interrupts)), '[]')
             from nursery_queue.running
            where worker_id = %(id)s::uuid and cancel_requested_at is not null),
          exists (select from nursery_queue.worker as other
                   where other.id <> %(id)s::uuid and not other.dead
                     and other.heartbeat_at
                         < nursery_queue.now() - make_interval(secs => other.lease)),
          extract(epoch from nursery_queue.now())::float8
