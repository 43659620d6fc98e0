-- Carries out what was decided of schedules that take_schedules has locked. Walks schedule_pkey and
-- tick_pkey.
select nursery_queue.fire(%(firings)s::json)
