-- Renews a lease. No row: others took this worker for dead. Also answers which of its tasks
-- are to be cancelled; and which other workers are late, by two of their heartbeats, or have
-- one from the future: each with the seconds after which it is dead, by declare_dead.sql. Writes
-- what the clock says also where that is earlier than before: a heartbeat from the future, if it
-- were kept, would stay the same until the clock has caught up, and a live worker could not be told
-- from a dead one (tests/engine/test_clock_jumps.py). Walks worker_pkey and running_cancel.
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
