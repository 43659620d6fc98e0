-- With which outcome claims have been closed, for a worker that got no answer when it settled
-- them; null: there is no such task any more. A claim that is open, or was given back without an
-- entry in the log, is not in the answer. Looked up one by one (offset 0), so it walks
-- attempt_pkey and task_pkey; tests/pg/test_plans.py holds the plan.
select asked.task_id, asked.epoch, closed.outcome
  from unnest(%(task_ids)s::bigint[], %(epochs)s::int[]) as asked (task_id, epoch)
  left join lateral (select attempt.outcome from nursery_queue.attempt
                      where attempt.task_id = asked.task_id and attempt.epoch = asked.epoch
                     offset 0) as closed on true
 where closed.outcome is not null
    or not exists (select from nursery_queue.task where task.id = asked.task_id offset 0)
