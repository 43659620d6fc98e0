-- Deletes up to `limit` tasks that ended longer ago than they are kept, with their log and their
-- streams; fewer, but at least one, if those have very many chunks or attempts. Of a task with more
-- than `attempts` of them, these go first, so many at a time: then the second answer is true. Never
-- a live one, nor one that another transaction holds or refers to at this moment. Waits a second at
-- most for rows of the application's that are to be deleted or changed with their task. Walks finished_expires, stream_task_id_name_key, attempt_pkey, task_pkey,
-- dedup_task and chunk_pkey.
with old as materialized (
    select finished.ctid as place, task_id,
           (select count(*) from (select from nursery_queue.attempt
                                   where attempt.task_id = finished.task_id
                                   limit %(attempts)s::int + 1) as logged) as attempts
      from nursery_queue.finished
      left join lateral (select id from nursery_queue.task where task.id = finished.task_id
                            for update skip locked) as free on true
     where expires_at <= nursery_queue.now()
       and (free.id is not null
            or (select true from nursery_queue.task where task.id = finished.task_id) is null)
     order by expires_at
     limit %(limit)s::int
       for update of finished skip locked
), long as materialized (
    select task_id from old where attempts > %(attempts)s::int limit 1
), written as materialized (
    select id, task_id,
           sum(length - first) over (order by task_id range unbounded preceding
                                     exclude group) as before
      from nursery_queue.stream
     where task_id = any(array(select task_id from old))
), logged as materialized (
    select task_id, sum(attempts) over (order by task_id rows unbounded preceding
                                        exclude current row) as before
      from old
), gone as (
    delete from nursery_queue.finished
     where ctid = any(array(
        select place from old
         where attempts <= %(attempts)s::int
           and task_id <> all(array(select task_id from written where before >= %(chunks)s::int))
           and task_id <> all(array(select task_id from logged
                                     where before >= %(attempts)s::int))))
    returning task_id
), shortened as (
    delete from nursery_queue.attempt
     where ctid = any(array(
        select ctid from nursery_queue.attempt
         where task_id = (select task_id from long)
         order by epoch
         limit %(attempts)s::int))
    returning task_id
), attempts as (
    delete from nursery_queue.attempt where task_id = any(array(select task_id from gone))
), streams as (
    delete from nursery_queue.stream where task_id = any(array(select task_id from gone))
    returning id
), chunks as (
    delete from nursery_queue.chunk where stream_id = any(array(select id from streams))
), untold as (
    delete from nursery_queue.untold where task_id = any(array(select task_id from gone))
), keys as (
    -- Left behind while another transaction held them.
    delete from nursery_queue.dedup
     where ctid = any(array(
        select ctid from nursery_queue.dedup
         where task_id = any(array(select task_id from gone))
           and coalesce(until <= nursery_queue.now(), true)
           for update skip locked))
), tasks as (
    delete from nursery_queue.task where id = any(array(select task_id from gone))
)
select (select count(*) from gone), exists (select from shortened),
       set_config('nursery_queue.tidy', 'own', true), -- see forget()
       set_config('lock_timeout', '1s', true) -- in time for the triggers of foreign keys
