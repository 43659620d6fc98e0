-- Debounced tasks: each call replaces the waiting one before it is stored (enqueue_many).

-- For each of these dedup keys that a task has which has not started: holds that task, so that it
-- does not start before the commit, and answers it with its place. Any other of them that is taken
-- is free afterwards: the next task to be stored gets it. Waits for claims and promotions that are
-- under way, and for other transactions that hold a key. Nobody who has a position waits for the
-- row of a key, so no two can wait for each other; a row of a key is deleted, never updated, so
-- that nobody who waited for it takes its next task for the old one.
create function nursery_queue.hold(keys text[])
returns table (dedup_key text, task_id bigint, place text)
language plpgsql rows 1 set search_path = pg_catalog, pg_temp set enable_seqscan = off
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    each record;
    asked nursery_queue.task;
    suspect boolean;
    state text;
begin
    for each in select dedup.dedup_key, dedup.task_id from nursery_queue.dedup
                 where dedup.dedup_key = any(keys)
                 order by dedup.dedup_key
                   for update
    loop
        place := null;
        suspect := false;
        -- It may move on while we look at one place after the other: then look again. Its log says
        -- whether it has started; a claim that was only held ahead is not in there.
        loop
            exit when exists (select from nursery_queue.attempt
                               where attempt.task_id = each.task_id);
            select 'scheduled' into place from nursery_queue.scheduled
             where scheduled.task_id = each.task_id for update;
            exit when found;
            select * into asked from nursery_queue.task where task.id = each.task_id;
            select 'ready', ready.suspect into place, suspect from nursery_queue.ready
             where ready.queue = asked.queue and ready.task_type = asked.task_type
               and ready.priority = asked.priority and ready.key = coalesce(asked.key, '')
               and ready.task_id = asked.id for update;
            exit when found;
            select 'parked', parked.suspect into place, suspect from nursery_queue.parked
             where parked.task_type = asked.task_type and parked.queue = asked.queue
               and parked.priority = asked.priority and parked.task_id = asked.id for update;
            exit when found;
            select task_status.state into state from nursery_queue.task_status
             where task_status.id = each.task_id;
            exit when state is null or state not in ('scheduled', 'ready');
        end loop;
        if place is null or suspect then
            delete from nursery_queue.dedup where dedup.dedup_key = each.dedup_key;
        else
            dedup_key := each.dedup_key;
            task_id := each.task_id;
            return next;
        end if;
    end loop;
end
$$;

-- Replaces what is asked of a task that `hold` holds in that place, and starts its wait anew.
-- `task` is as in enqueue_many; what it leaves out is as declared.
create function nursery_queue.replace(id bigint, place text, asked json) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    old nursery_queue.task;
    new nursery_queue.task;
    due timestamptz;
    was_due timestamptz;
begin
    select * into old from nursery_queue.task where task.id = replace.id;
    due := greatest(
        nursery_queue.now(),
        least(nursery_queue.now()
                  + make_interval(secs => (asked ->> 'debounce_wait')::double precision),
              old.created_at
                  + make_interval(secs => (asked ->> 'debounce_max_wait')::double precision)));
    update nursery_queue.task
       set task_type = asked ->> 'task_type', params = (asked ->> 'params')::jsonb,
           queue = asked ->> 'queue', priority = (asked ->> 'priority')::integer,
           key = asked ->> 'key', run_at = due
     where task.id = replace.id
    returning * into new;
    if place = 'scheduled' then
        select due_at into was_due from nursery_queue.scheduled
         where scheduled.task_id = replace.id;
        update nursery_queue.scheduled set due_at = due where scheduled.task_id = replace.id;
    else
        -- One of the two. Due at once, it is made ready by the next promotion.
        with not_ready as (
            delete from nursery_queue.ready
             where ready.queue = old.queue and ready.task_type = old.task_type
               and ready.priority = old.priority and ready.key = coalesce(old.key, '')
               and ready.task_id = old.id
            returning ready.attempt, ready.epoch, ready.lost
        ), not_parked as (
            delete from nursery_queue.parked
             where parked.task_type = old.task_type and parked.queue = old.queue
               and parked.priority = old.priority and parked.task_id = old.id
            returning parked.attempt, parked.epoch, parked.lost
        )
        insert into nursery_queue.scheduled (task_id, due_at, attempt, epoch, lost)
        select replace.id, due, attempt, epoch, lost
          from (select * from not_ready union all select * from not_parked) as positions;
    end if;
    -- A worker may sleep until it was due.
    if (was_due is null or due < was_due)
       and coalesce(lower(current_setting('nursery_queue.notify', true)), 'on')
               not in ('off', 'false', 'no', '0')
       and not exists (select from nursery_queue.queue where name = new.queue and not notify) then
        perform pg_notify('nursery_queue', '');
    end if;
end
$$;

-- Does what is to be done for tasks that are debounced: the waiting task of a key is replaced by
-- the last of the list with that key. Answers the list as it is to be stored: where the key is
-- `free`, with that last one in the place of the first.
create function nursery_queue.debounced(tasks json) returns json
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    each record;
    held jsonb;
begin
    if exists (select from json_to_recordset(tasks)
                           as asked (dedup_key text, dedup_for text, run_at text,
                                     run_after double precision, debounce_wait double precision,
                                     debounce_max_wait double precision)
                where debounce_wait is not null
                  and (dedup_key is null or run_at is not null or run_after <> 0
                       or dedup_for is not null
                       or not (debounce_wait > 0 and debounce_wait <= 3155760000)
                       or not (debounce_max_wait >= debounce_wait
                               and debounce_max_wait <= 3155760000))) then
        raise invalid_parameter_value using message =
            'a task that is debounced needs a dedup_key, a debounce_wait above 0, a'
            ' debounce_max_wait that is not less, and none of run_at, run_after and dedup_for';
    end if;
    select jsonb_object_agg(hold.dedup_key, jsonb_build_array(task_id, place)) into held
      from nursery_queue.hold(array(select asked.dedup_key
                                      from json_to_recordset(tasks)
                                           as asked (dedup_key text, debounce_wait text)
                                     where debounce_wait is not null)) as hold;
    for each in
        select distinct on (dedup_key) task, (held -> dedup_key ->> 0)::bigint as id,
               held -> dedup_key ->> 1 as place
          from rows from (json_array_elements(tasks),
                          json_to_recordset(tasks) as (dedup_key text, debounce_wait text))
               with ordinality as asked (task, dedup_key, debounce_wait, position)
         where debounce_wait is not null and held ? dedup_key
         order by dedup_key, position desc
    loop
        perform nursery_queue.replace(each.id, each.place, each.task);
    end loop;
    return (
        with asked as materialized (
            select task::jsonb as task, dedup_key, debounce_wait is not null as debounced, position
              from rows from (json_array_elements(tasks),
                              json_to_recordset(tasks) as (dedup_key text, debounce_wait text))
                   with ordinality as asked (task, dedup_key, debounce_wait, position)
        ), last as (
            select distinct on (dedup_key) dedup_key, task from asked
             where debounced
             order by dedup_key, position desc
        )
        select json_agg(
                   case when last.task is null then asked.task
                        else asked.task
                             - '{task_type,params,queue,priority,key,run_at}'::text[]
                             || jsonb_strip_nulls(jsonb_build_object(
                                    'task_type', last.task -> 'task_type',
                                    'params', last.task -> 'params',
                                    'queue', last.task -> 'queue',
                                    'priority', last.task -> 'priority',
                                    'key', last.task -> 'key',
                                    'run_after', last.task -> 'debounce_wait',
                                    'free', not coalesce(held ? dedup_key, false))) end
                   order by position)
          from asked
          left join last using (dedup_key));
end
$$;
