-- Sets some columns of a queue and leaves the others as they are, in one statement; the triggers
-- on the table see to the rest. `changes`: values by column. Walks queue_pkey.
insert into nursery_queue.queue as known
       (name, paused, max_running, max_running_per_key, rate_count, rate_per, rate_burst,
        key_rate_count, key_rate_per, key_rate_burst, notify)
select %(queue)s::text, coalesce(paused, false), max_running, max_running_per_key,
       rate_count, rate_per, rate_burst, key_rate_count, key_rate_per, key_rate_burst,
       coalesce(notify, true)
  from jsonb_populate_record(null::nursery_queue.queue, %(changes)s::jsonb)
    on conflict (name) do update
   set (paused, max_running, max_running_per_key, rate_count, rate_per, rate_burst,
        key_rate_count, key_rate_per, key_rate_burst, notify)
       = (select paused, max_running, max_running_per_key, rate_count, rate_per, rate_burst,
                 key_rate_count, key_rate_per, key_rate_burst, notify
            from jsonb_populate_record(known, %(changes)s::jsonb))
