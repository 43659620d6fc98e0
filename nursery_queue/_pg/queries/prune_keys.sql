-- Deletes dedup keys that are not taken any more: looks at up to `limit`, and answers at how many.
-- One that is taken, by a task that lives long, is looked at again when the task is twice as old. Walks dedup_prune, task_pkey and
-- finished_pkey; tests/pg/test_plans.py holds it.
with due as materialized (
    select ctid as place, task_id, nursery_queue.is_taken(task_id, until) as taken
      from nursery_queue.dedup
     where prune_at <= nursery_queue.now()
     order by prune_at
     limit %(limit)s::int
       for update skip locked
), gone as (
    delete from nursery_queue.dedup
     where ctid = any(array(select place from due where not taken))
    returning task_id
), later as (
    update nursery_queue.dedup
       set prune_at = nursery_queue.now()
                      + greatest(interval '1 minute',
                                 (select nursery_queue.now() - created_at
                                    from nursery_queue.task where task.id = dedup.task_id))
     where ctid = any(array(select place from due where taken))
)
select count(*) from due
