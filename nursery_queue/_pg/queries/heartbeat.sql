-- Renews a lease. No row: others took this worker for dead. Also answers which of its tasks
-- somebody wants cancelled; and which other workers are late, by two of their heartbeats, or have
-- one from the future: each with the seconds after which it is dead, by declare_dead.sql. Writes
-- what the clock says also where that is earlier than before: kept, a heartbeat from the future
-- would be the same as long as the clock is behind it, and the living could not be told from the
-- dead. Walks worker_pkey and running_cancel.
update nursery_queue.worker
   set heartbeat_at = nursery_queue.now(), draining = %(draining)s::boolean
 where id = %(id)s::uuid and not dead
returning (select coalesce(jsonb_agg(jsonb_build_array(task_id, epoch, cancel_interrupts)), '[]')
             from nursery_queue.running
            where worker_id = %(id)s::uuid and cancel_requested_at is not null),
          (select coalesce(jsonb_agg(jsonb_build_array(
                      other.id, other.heartbeat_at,
                      case when other.heartbeat_at
                                < nursery_queue.now() - make_interval(secs => other.lease)
                           then least(other.heartbeat + 1, other.lease)
                           else other.lease end)), '[]')
             from nursery_queue.worker as other
            where other.id <> %(id)s::uuid and not other.dead
              and other.heartbeat_at
                  not between nursery_queue.now() - make_interval(secs => 2 * other.heartbeat)
                          and nursery_queue.now() + make_interval(secs => 2 * other.heartbeat))
