-- Cancels, or counts, the tasks that fit on one page of a walk through all of them by id.
select last, count
  from nursery_queue.cancel_page(%(queue)s::text, %(task_type)s::text, %(before)s::timestamptz,
                                 %(after)s::bigint, %(upto)s::bigint, %(most)s::int,
                                 %(dry_run)s::boolean)
