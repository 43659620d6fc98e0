-- Notes that these claims of a worker have started, or are about to. Answers which of them it still
-- holds, without the ones that an open transaction is in the way of. Walks running_pkey.
with mine as materialized (
    select running.ctid as place
      from unnest(%(task_ids)s::bigint[], %(epochs)s::int[]) as noted (task_id, epoch)
      join nursery_queue.running using (task_id, epoch)
     where running.worker_id = %(worker_id)s::uuid
       for no key update of running skip locked
)
update nursery_queue.running set started = true
 where ctid = any(array(select place from mine))
returning task_id, epoch
