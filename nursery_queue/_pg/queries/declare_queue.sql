-- Sets a queue as code declares it, unless that is what it has declared before: then it keeps what
-- was set at run time. What was declared, and is no more, becomes as if it had never been. Waits so
-- many milliseconds for a transaction that is changing the queue. `declared`: values by column.
-- Answers a row if it has set it. Walks queue_pkey.
insert into nursery_queue.queue as known
       (name, max_running, max_running_per_key, rate_count, rate_per, rate_burst,
        key_rate_count, key_rate_per, key_rate_burst, notify, declared)
select %(queue)s::text, asked.max_running, asked.max_running_per_key,
       asked.rate_count, asked.rate_per, asked.rate_burst,
       asked.key_rate_count, asked.key_rate_per, asked.key_rate_burst,
       coalesce(asked.notify, true), %(declared)s::jsonb
  from set_config('lock_timeout', %(patience)s::text, true) as patience
 cross join jsonb_populate_record(null::nursery_queue.queue, %(declared)s::jsonb) as asked
    on conflict (name) do update
   set (max_running, max_running_per_key, rate_count, rate_per, rate_burst,
        key_rate_count, key_rate_per, key_rate_burst, notify, declared)
       = (select max_running, max_running_per_key, rate_count, rate_per, rate_burst,
                 key_rate_count, key_rate_per, key_rate_burst, notify, excluded.declared
            from (select coalesce(jsonb_object_agg(name, case name when 'notify' then 'true'
                                                              else 'null' end::jsonb), '{}') as gone
                    from jsonb_object_keys(known.declared) as name) as before
           cross join jsonb_populate_record(known, before.gone || excluded.declared))
 where known.declared is distinct from excluded.declared
returning known.name
