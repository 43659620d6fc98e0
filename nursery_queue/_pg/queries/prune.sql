-- Deletes up to `limit` tasks that ended longer ago than they are kept, with their log and their
-- streams; fewer, but at least one, if those have very many chunks. Never a live one. Walks
-- finished_expires, stream_task_id_name_key, attempt_pkey, task_pkey and chunk_pkey.
with old as materialized (
    select ctid as place, task_id from nursery_queue.finished
     where expires_at <= nursery_queue.now()
     order by expires_at
     limit %(limit)s::int
       for update skip locked
), written as materialized (
    select id, task_id,
           sum(length - first) over (order by task_id range unbounded preceding
                                     exclude group) as before
      from nursery_queue.stream
     where task_id = any(array(select task_id from old))
), gone as (
    delete from nursery_queue.finished
     where ctid = any(array(
        select place from old
         where task_id <> all(array(select task_id from written where before >= %(chunks)s::int))))
    returning task_id
), attempts as (
    delete from nursery_queue.attempt where task_id = any(array(select task_id from gone))
), streams as (
    delete from nursery_queue.stream where task_id = any(array(select task_id from gone))
    returning id
), chunks as (
    delete from nursery_queue.chunk where stream_id = any(array(select id from streams))
), tasks as (
    delete from nursery_queue.task where id = any(array(select task_id from gone))
)
select count(*) from gone
