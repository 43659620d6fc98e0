-- Looks at one page of the running positions: which are abandoned, since no live worker holds them
-- or their task is gone; and where the page ends (null: there was nothing). Walks running_pkey.
with page as materialized (
    select task_id, worker_id from nursery_queue.running
     where task_id > %(after)s::bigint
     order by task_id
     limit %(look_at)s::int
)
select (select max(task_id) from page),
       array(select task_id from page
              where not exists (select from nursery_queue.worker
                                 where worker.id = page.worker_id and not dead)
                 or not exists (select from nursery_queue.task where task.id = page.task_id)
              order by task_id)
