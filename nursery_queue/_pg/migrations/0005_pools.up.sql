-- Queues as pools: how many tasks of a queue run over all workers, and who is in the way.

-- Whoever claims from a queue holds its lock shared and whoever changes the queue holds it alone,
-- each until the commit: so no claim comes in that does not know of a change made before.
create function nursery_queue.change_alone() returns trigger
language plpgsql
as $$
begin
    if tg_op <> 'INSERT' then
        perform pg_advisory_xact_lock(hashtextextended('nursery_queue.queue.' || old.name, 0));
    end if;
    if tg_op = 'DELETE' then
        return old;
    end if;
    perform pg_advisory_xact_lock(hashtextextended('nursery_queue.queue.' || new.name, 0));
    return new;
end
$$;

create trigger change_alone before insert or update or delete on nursery_queue.queue
    for each row execute function nursery_queue.change_alone();

-- What was claimed before there was a limit counts against it, too. Then rings: there may be
-- room now.
create function nursery_queue.count_and_ring() returns trigger
language plpgsql
as $$
begin
    update nursery_queue.running
       set pool = task.queue
      from nursery_queue.task
     where task.id = running.task_id
       and running.pool is null
       and task.queue in (select name from nursery_queue.queue where max_running is not null);
    perform pg_notify('nursery_queue', '');
    return null;
end
$$;

create trigger count_and_ring after insert or update or delete on nursery_queue.queue
    for each statement execute function nursery_queue.count_and_ring();

-- How many tasks may start, by queue, for those that are paused (-1), that somebody is changing
-- (-2: ask again), or that have a limit; null: there are none. Until the commit nobody else gets an
-- answer for the latter, and none of them is changed.
create function nursery_queue.room(queues text[]) returns jsonb
language plpgsql
as $$
declare
    each text;
    changing text[] := '{}';
begin
    foreach each in array queues loop
        -- However long that transaction lasts, only this queue waits for it.
        if not pg_try_advisory_xact_lock_shared(
                   hashtextextended('nursery_queue.queue.' || each, 0)) then
            changing := changing || each;
        end if;
    end loop;
    if changing = '{}'
       and not exists (select from nursery_queue.queue
                        where name = any(queues) and (paused or max_running is not null)) then
        return null;
    end if;
    for each in select name from nursery_queue.queue
                 where name = any(queues) and name <> all(changing)
                   and max_running > 0 and not paused
                 order by name -- so that two claims cannot wait for each other
    loop
        perform pg_advisory_xact_lock(hashtextextended('nursery_queue.pool.' || each, 0));
    end loop;
    -- A statement of its own: it sees what was committed while those before it waited.
    return (select jsonb_object_agg(name, free)
              from (select name, case when paused then -1
                                      else greatest(0, max_running - (
                                               select count(*) from nursery_queue.running
                                                where running.pool = name)) end as free
                      from nursery_queue.queue
                     where name = any(queues) and name <> all(changing)
                       and (paused or max_running is not null)
                     union all
                    select name, -2 from unnest(changing) as name) as known);
end
$$;

-- Puts ready tasks of types that no live worker knows out of the way of claims, if they are
-- among the first `most` of their queue. Answers how many.
create function nursery_queue.park(most integer) returns integer
language plpgsql
as $$
declare
    moved integer;
begin
    -- Who registers and brings back what it knows waits for us; who has, is seen below.
    perform pg_advisory_xact_lock_shared(hashtextextended('nursery_queue.parked', 0));
    with recursive known as materialized (
        select distinct unnest(task_types) as task_type from nursery_queue.worker
         where heartbeat_at >= nursery_queue.now() - make_interval(secs => lease)
    ), lane (queue) as (
        (select queue from nursery_queue.ready order by queue limit 1)
        union all
        select (select next.queue from nursery_queue.ready as next
                 where next.queue > lane.queue order by next.queue limit 1)
          from lane
         where lane.queue is not null
    ), strange as materialized (
        select head.place
          from lane
         cross join lateral (select ready.ctid as place, ready.task_type
                               from nursery_queue.ready
                              where ready.queue = lane.queue
                              order by ready.priority desc, ready.task_id
                              limit most) as head
         where lane.queue is not null
           and not exists (select from known where known.task_type = head.task_type)
    ), free as materialized (
        select ctid as place from nursery_queue.ready
         where ctid = any(array(select place from strange))
           for update skip locked
    ), gone as (
        delete from nursery_queue.ready
         where ctid = any(array(select place from free))
        returning *
    ), put as (
        insert into nursery_queue.parked select * from gone returning task_id
    )
    select count(*) into moved from put;
    return moved;
end
$$;

-- Brings up to `most` parked tasks of these types back. Answers how many, and rings.
create function nursery_queue.unpark(types text[], most integer) returns integer
language plpgsql
as $$
declare
    moved integer;
begin
    perform pg_advisory_xact_lock(hashtextextended('nursery_queue.parked', 0));
    with known as materialized (
        select ctid as place from nursery_queue.parked
         where task_type = any(types)
         limit most
           for update skip locked
    ), gone as (
        delete from nursery_queue.parked
         where ctid = any(array(select place from known))
        returning *
    ), put as (
        insert into nursery_queue.ready select * from gone returning task_id
    )
    select count(*) into moved from put;
    if moved > 0 then
        perform pg_notify('nursery_queue', '');
    end if;
    return moved;
end
$$;
