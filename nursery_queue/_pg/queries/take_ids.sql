-- Takes ids for tasks that are about to be copied in, and the instant that their delays count from.
-- A role that may not name ids gets nulls (tests/pg/test_rights.py). Walks nothing.
select array_agg(case when may then nextval(sequence) end) as ids, nursery_queue.now() as instant
  from (select sequence,
               has_column_privilege('nursery_queue.task', 'id', 'insert')
               and has_column_privilege('nursery_queue.task', 'created_at', 'insert')
               and has_sequence_privilege(sequence, 'usage') as may
          from (select pg_get_serial_sequence('nursery_queue.task', 'id')::regclass offset 0)
               as of_tasks (sequence) offset 0) as known
 cross join generate_series(1, %(count)s::int)
