-- Takes ids for tasks that are about to be copied in, and the instant their delays count from.
select array_agg(nextval(sequence)) as ids, nursery_queue.now() as instant
  from (select pg_get_serial_sequence('nursery_queue.task', 'id')::regclass offset 0)
       as of_tasks (sequence)
 cross join generate_series(1, %(count)s::int)
