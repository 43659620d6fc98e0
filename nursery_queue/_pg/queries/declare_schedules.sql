-- Stores the schedules that the code of a worker declares. Reads all schedules of its App.
select name, problem
  from nursery_queue.declare_schedules(%(worker_id)s::uuid, %(app)s::text, %(names)s::text[],
                                       %(task_types)s::text[], %(declared)s::json)
