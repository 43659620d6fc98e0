-- Maintenance: keeps the tables in order when a row is refused, deleted by hand, or one of very
-- many.

-- Lets a task fail that cannot go on from where it is, whatever positions it has. It is kept for a
-- day at least, so that the reason can be seen. False: there is no such task, or it has ended.
create function nursery_queue.set_aside(id bigint, error_type text, error_message text)
returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    asked nursery_queue.task;
    place record;
begin
    select * into asked from nursery_queue.task where task.id = set_aside.id;
    with not_scheduled as (
        delete from nursery_queue.scheduled where task_id = set_aside.id
        returning attempt, epoch, lost
    ), not_ready as (
        delete from nursery_queue.ready
         where queue = asked.queue and task_type = asked.task_type
           and priority = asked.priority and key = coalesce(asked.key, '')
           and task_id = set_aside.id
        returning attempt, epoch, lost
    ), not_parked as (
        delete from nursery_queue.parked
         where task_type = asked.task_type and queue = asked.queue
           and priority = asked.priority and task_id = set_aside.id
        returning attempt, epoch, lost
    ), not_running as (
        delete from nursery_queue.running where task_id = set_aside.id
        returning attempt, epoch, lost
    )
    select max(attempt) as attempt, max(epoch) as epoch, max(lost) as lost into place
      from (select * from not_scheduled union all select * from not_ready union all
            select * from not_parked union all select * from not_running) as positions;
    if asked.id is null or place.epoch is null then
        return false;
    end if;
    insert into nursery_queue.finished (task_id, state, attempt, epoch, lost, finished_at,
                                        expires_at, error_type, error_message)
    values (asked.id, 'failed', place.attempt, place.epoch, place.lost, nursery_queue.now(),
            nursery_queue.now() + make_interval(secs => greatest(asked.keep_for, 86400)),
            set_aside.error_type, set_aside.error_message)
        on conflict do nothing; -- it has ended, and was only said to be somewhere
    if not found then
        return false;
    end if;
    delete from nursery_queue.dedup
     where ctid = any(array(
        select ctid from nursery_queue.dedup
         where task_id = asked.id and coalesce(until <= nursery_queue.now(), true)
           for update skip locked)); -- see nursery_queue.hold
    if asked.on_complete is not null then
        perform nursery_queue.complete(
            array[asked.id], array[asked.on_complete], array[asked.context],
            array[nursery_queue.ending('failed', null, set_aside.error_type,
                                       set_aside.error_message, true)], array[true]);
    end if;
    perform pg_notify('nursery_queue', '');
    perform pg_notify('nursery_queue_finished', '');
    return true;
end
$$;

-- Sets a task aside after an error that is about its row, and answers the reason by its id.
create function nursery_queue.refuse(id bigint, error_type text, state text, problem text)
returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if nursery_queue.is_of_row(state) then
        begin
            perform nursery_queue.set_aside(id, error_type, problem);
        exception when others then
            if nursery_queue.passes(sqlstate) then
                raise;
            end if;
            problem := problem || '; nor can it be set aside: ' || sqlerrm;
        end;
    end if;
    return jsonb_build_object(id::text, problem);
end
$$;

-- Makes up to `most` scheduled tasks that are due ready, one by one. A task that is refused fails
-- with the reason. Answers how many were moved, and the reasons by id.
create function nursery_queue.promote_each(most integer, out moved integer, out refused jsonb)
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    each record;
begin
    moved := 0;
    refused := '{}';
    for each in select * from nursery_queue.scheduled
                 where due_at <= nursery_queue.now()
                 order by due_at, task_id
                 limit most
                   for update skip locked
    loop
        begin
            insert into nursery_queue.ready (task_id, queue, priority, task_type, key, due_at,
                                             attempt, epoch, lost)
            select task.id, task.queue, task.priority, task.task_type, coalesce(task.key, ''),
                   each.due_at,
                   each.attempt, each.epoch, each.lost
              from nursery_queue.task where task.id = each.task_id;
            delete from nursery_queue.scheduled where scheduled.task_id = each.task_id;
            moved := moved + 1;
        exception when others then
            if nursery_queue.passes(sqlstate) then
                raise;
            end if;
            refused := refused
                || nursery_queue.refuse(each.task_id, 'not_promoted', sqlstate, sqlerrm);
        end;
    end loop;
    perform pg_notify('nursery_queue', '');
end
$$;

-- Deletes up to `most` tasks that ended longer ago than they are kept, one by one. A task that is
-- refused, for a reference from a table of the application's for instance, is kept for another day;
-- one whose rows another transaction holds, for another minute. Waits for up to ten of these.
create function nursery_queue.prune_each(most integer, out moved integer, out refused jsonb)
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
    set lock_timeout = '50ms'
as $$
declare
    each record;
    held integer := 0;
begin
    moved := 0;
    refused := '{}';
    perform set_config('nursery_queue.tidy', 'own', true); -- see forget()
    for each in select task_id from nursery_queue.finished
                 where expires_at <= nursery_queue.now()
                 order by expires_at
                 limit most
                   for update skip locked
    loop
        begin
            delete from nursery_queue.task where task.id = each.task_id;
            perform nursery_queue.forget_streams(array[each.task_id]);
            delete from nursery_queue.attempt where attempt.task_id = each.task_id;
            delete from nursery_queue.untold where untold.task_id = each.task_id;
            delete from nursery_queue.dedup
             where dedup.task_id = each.task_id
               and coalesce(until <= nursery_queue.now(), true);
            delete from nursery_queue.finished where finished.task_id = each.task_id;
            moved := moved + 1;
        exception when lock_not_available then
            update nursery_queue.finished
               set expires_at = nursery_queue.now() + interval '1 minute'
             where finished.task_id = each.task_id;
            held := held + 1;
            exit when held >= 10;
        when others then
            if nursery_queue.passes(sqlstate) then
                raise;
            end if;
            refused := refused || jsonb_build_object(each.task_id::text, sqlerrm);
            update nursery_queue.finished
               set expires_at = nursery_queue.now() + interval '1 day'
             where finished.task_id = each.task_id;
        end;
    end loop;
    perform set_config('nursery_queue.tidy', '', true);
end
$$;

-- Parks ready tasks of types that no live worker knows, as park does, one by one. A task that is
-- refused stays where it is: it is in the way of claims, and nothing worse.
create function nursery_queue.park_each(most integer, out moved integer, out refused jsonb)
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    head text;
    known text[];
    each nursery_queue.ready;
begin
    moved := 0;
    refused := '{}';
    perform pg_advisory_xact_lock_shared(hashtextextended('nursery_queue.parked', 0));
    select array_agg(distinct listed.task_type) into known
      from nursery_queue.worker, unnest(task_types) as listed (task_type)
     where heartbeat_at >= nursery_queue.now() - make_interval(secs => lease);
    select queue into head from nursery_queue.ready order by queue limit 1;
    while head is not null loop
        for each in select * from nursery_queue.ready
                     where queue = head
                     limit most
        loop
            continue when each.task_type = any(known);
            begin
                delete from nursery_queue.ready
                 where queue = each.queue and task_type = each.task_type
                   and priority = each.priority and key = each.key
                   and task_id = each.task_id;
                if found then
                    insert into nursery_queue.parked (task_id, queue, priority, task_type, key,
                                                      due_at, attempt, epoch, lost, suspect)
                    values (each.task_id, each.queue, each.priority, each.task_type, each.key,
                            each.due_at, each.attempt, each.epoch, each.lost, each.suspect);
                    moved := moved + 1;
                end if;
            exception when others then
                if nursery_queue.passes(sqlstate) then
                    raise;
                end if;
                refused := refused || jsonb_build_object(each.task_id::text, sqlerrm);
            end;
        end loop;
        select queue into head from nursery_queue.ready where queue > head order by queue limit 1;
    end loop;
end
$$;

-- Brings up to `most` parked tasks of these types back, as unpark does, one by one. A task that is
-- refused fails with the reason.
create function nursery_queue.unpark_each(
    types text[], most integer, out moved integer, out refused jsonb
)
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    each nursery_queue.parked;
begin
    moved := 0;
    refused := '{}';
    perform pg_advisory_xact_lock(hashtextextended('nursery_queue.parked', 0));
    for each in select * from nursery_queue.parked
                 where task_type = any(types)
                 limit most
                   for update skip locked
    loop
        begin
            delete from nursery_queue.parked
             where task_type = each.task_type and queue = each.queue
               and priority = each.priority and task_id = each.task_id;
            insert into nursery_queue.ready (task_id, queue, priority, task_type, key, due_at,
                                             attempt, epoch, lost, suspect)
            values (each.task_id, each.queue, each.priority, each.task_type, each.key,
                    each.due_at, each.attempt, each.epoch, each.lost, each.suspect);
            moved := moved + 1;
        exception when others then
            if nursery_queue.passes(sqlstate) then
                raise;
            end if;
            refused := refused
                || nursery_queue.refuse(each.task_id, 'not_brought_back', sqlstate, sqlerrm);
        end;
    end loop;
    if moved > 0 then
        perform pg_notify('nursery_queue', '');
    end if;
end
$$;

-- Deletes all but the newest hundred closed attempts of tasks, and counts them in the oldest one
-- that stays. Called at every hundredth claim of a task, so that no log grows without end.
create function nursery_queue.trim_attempts(ids bigint[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
    set plan_cache_mode = force_generic_plan
as $$
declare
    each bigint;
    cut integer;
    counted jsonb;
begin
    foreach each in array ids loop
        select epoch into cut from nursery_queue.attempt
         where task_id = each
         order by epoch desc
        offset 99 limit 1;
        continue when not found;
        with old as materialized (
            select epoch from nursery_queue.attempt
             where task_id = each and epoch < cut
             order by epoch
             limit 10000
        ), gone as (
            delete from nursery_queue.attempt
             where task_id = each and epoch <= (select max(epoch) from old)
            returning outcome || case when final then ' final' else '' end as way, earlier
        ), ways as (
            select way, 1::bigint as times from gone
             union all
            select key, value::bigint from gone, jsonb_each_text(earlier)
        )
        select jsonb_object_agg(way, times) into counted
          from (select way, sum(times) as times from ways group by way) as summed;
        update nursery_queue.attempt set earlier = counted
         where task_id = each and counted is not null
           and epoch = (select min(epoch) from nursery_queue.attempt where task_id = each);
    end loop;
end
$$;

-- When rows of task are deleted by hand, all that belongs to them goes, too. The order is that of a
-- task's life, so that a task that moves on meanwhile is met again. Statements of our own delete
-- all that themselves, at less cost, and say so by the setting `tidy`.
create function nursery_queue.forget() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
    if tg_relid <> 'nursery_queue.task'::regclass then
        raise insufficient_privilege using message =
            'forget() is the trigger of nursery_queue.task alone, not of ' || tg_relid::regclass;
    end if;
    if not exists (select from gone) then -- the trigger is for statements, also without rows
        return null;
    end if;
    delete from nursery_queue.scheduled using gone where scheduled.task_id = gone.id;
    delete from nursery_queue.ready using gone
     where ready.queue = gone.queue and ready.task_type = gone.task_type
       and ready.priority = gone.priority and ready.key = coalesce(gone.key, '')
       and ready.task_id = gone.id;
    delete from nursery_queue.parked using gone
     where parked.task_type = gone.task_type and parked.queue = gone.queue
       and parked.priority = gone.priority and parked.task_id = gone.id;
    delete from nursery_queue.running using gone where running.task_id = gone.id;
    delete from nursery_queue.finished using gone where finished.task_id = gone.id;
    delete from nursery_queue.dedup
     where ctid = any(array(
        select dedup.ctid from nursery_queue.dedup join gone on dedup.task_id = gone.id
           for update of dedup skip locked)); -- see hold()
    delete from nursery_queue.attempt using gone where attempt.task_id = gone.id;
    delete from nursery_queue.untold using gone where untold.task_id = gone.id;
    perform nursery_queue.forget_streams(array(select id from gone));
    perform pg_notify('nursery_queue', ''); -- a slot may be free
    perform pg_notify('nursery_queue_finished', '');
    return null;
end
$$;

create trigger forget after delete on nursery_queue.task
    referencing old table as gone
    for each statement
    when (current_setting('nursery_queue.tidy', true) is distinct from 'own')
    execute function nursery_queue.forget();

create function nursery_queue.forget_all() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    place text;
begin
    if tg_relid <> 'nursery_queue.task'::regclass then
        raise insufficient_privilege using message =
            'forget_all() is the trigger of nursery_queue.task alone, not of '
            || tg_relid::regclass;
    end if;
    foreach place in array array['scheduled', 'ready', 'parked', 'running', 'finished', 'dedup',
                                 'attempt', 'untold', 'stream', 'chunk'] loop
        begin
            execute format('truncate nursery_queue.%I', place);
        exception when object_in_use then
            -- The same statement truncates this table, too, or a cursor is open on it.
            execute format('delete from nursery_queue.%I', place);
        end;
    end loop;
    perform pg_notify('nursery_queue', '');
    perform pg_notify('nursery_queue_finished', '');
    return null;
end
$$;

create trigger forget_all after truncate on nursery_queue.task
    for each statement execute function nursery_queue.forget_all();
