-- Takes the schedules away; the tasks that they have made stay.
drop function nursery_queue.declare_schedules(uuid, text, text[], text[], json);
drop function nursery_queue.store_schedules(text, json);
drop function nursery_queue.is_declared(text, text);
drop function nursery_queue.backfill(text, timestamptz[], boolean);
drop function nursery_queue.trigger_schedule(text);
drop function nursery_queue.unfinished(bigint[]);
drop function nursery_queue.fire(json);
drop function nursery_queue.note_ticks(text[], timestamptz[]);
drop function nursery_queue.store_ticks(text[], timestamptz[], timestamptz[]);
drop table nursery_queue.tick;
drop table nursery_queue.schedule;
drop function nursery_queue.ring_schedule();
drop function nursery_queue.check_schedule();
drop function nursery_queue.is_cron(text);
