-- Queues as pools: how many tasks of a queue run over all workers, and which tasks are in the way.

-- A claim holds the lock of each queue it takes from, shared, and a change holds the lock of its
-- queue alone, each until the commit: so no claim comes in that does not know of a change made
-- before. That a queue has no row yet makes no difference: the lock is on its name. A claim looks
-- at a bounded number of queues (nursery_queue.walk), so it holds a bounded number of locks: those
-- of all 20,000 queues of one installation were more than the server's memory for locks has room
-- for (tests/pg/test_many_queues.py).
-- A new limit counts the tasks that run already, which a transaction with a snapshot of its own may
-- not see: such a change is refused (tests/pg/test_limits.py).
create function nursery_queue.change_alone() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'DELETE' and num_nonnulls(new.max_running, new.max_running_per_key) > 0
       and (tg_op = 'INSERT'
            or row(new.name, new.max_running, new.max_running_per_key)
               is distinct from row(old.name, old.max_running, old.max_running_per_key))
       and current_setting('transaction_isolation') in ('repeatable read', 'serializable')
    then
        raise object_not_in_prerequisite_state
              using message = 'the limit of queue ' || new.name || ' cannot be set in a transaction'
                              ' that is ' || current_setting('transaction_isolation'),
                    detail = 'It may not see all tasks that run, so more than that might.',
                    hint = 'Set it in a transaction of its own, begun with:'
                           ' begin isolation level read committed';
    end if;
    if tg_op <> 'INSERT' then
        perform pg_advisory_xact_lock(hashtextextended('nursery_queue.queue.' || old.name, 0));
    end if;
    if tg_op = 'DELETE' then
        return old;
    end if;
    perform pg_advisory_xact_lock(hashtextextended('nursery_queue.queue.' || new.name, 0));
    -- A rate that is given or taken away without its burst.
    if num_nulls(new.rate_count, new.rate_per) <> 1 then
        new.rate_burst := case when new.rate_count is not null
                               then coalesce(new.rate_burst, 0) end;
    end if;
    if num_nulls(new.key_rate_count, new.key_rate_per) <> 1 then
        new.key_rate_burst := case when new.key_rate_count is not null
                                   then coalesce(new.key_rate_burst, 0) end;
    end if;
    return new;
end
$$;

create trigger change_alone before insert or update or delete on nursery_queue.queue
    for each row execute function nursery_queue.change_alone();

-- How many starts `queue` and each of its keys have made: as if each took its share of the time, the
-- next one is due at `next_at`. A row that is missing, or past, says that there were none lately.
create table nursery_queue.rate (
    queue   text not null,
    key     text collate "C" not null, -- '': of the queue as a whole
    next_at timestamptz not null,
    primary key (queue, key)
) with (fillfactor = 50);
comment on table nursery_queue.rate is 'How far the rates of queues, and of their keys, are used.';

-- How much of the time `starts` take at `count` in `per` seconds. Rounded up to whole microseconds,
-- as instants are, and exact until then: so that no window has more than it may. Like the next three
-- it is inlined, as nursery_queue.now() is: a claim asks for 64 keys, and a call took 60 us.
create function nursery_queue.span(starts bigint, count integer, per double precision)
returns interval
language sql immutable parallel safe
return make_interval(secs => (ceil(starts::numeric * per::numeric * 1000000 / count)
                              / 1000000)::double precision);

-- What to believe of `next_at`: if it is later than starts can have made it, the clock was ahead for
-- a while, and waiting for that instant could take years. Then as if the burst had just been used,
-- so that one may start now and puts it right. A minute more is for claims that began before others
-- which were faster (tests/pg/test_limits.py).
create function nursery_queue.believed(
    next_at timestamptz, count integer, per double precision, burst integer
) returns timestamptz
language sql stable parallel safe
return case when next_at <= nursery_queue.now() + interval '1 minute'
                            + nursery_queue.span(burst + 1::bigint, count, per)
            then next_at
            else nursery_queue.now() + nursery_queue.span(burst, count, per) end;

-- The instant from which on a start is allowed, if the next one was due at `next_at`.
create function nursery_queue.allowed_at(
    next_at timestamptz, count integer, per double precision, burst integer
) returns timestamptz
language sql stable parallel safe
return nursery_queue.believed(next_at, count, per, burst)
       - nursery_queue.span(burst, count, per);

-- How many may start now, up to a million.
create function nursery_queue.tokens(
    next_at timestamptz, count integer, per double precision, burst integer
) returns integer
language sql stable parallel safe
return case when next_at is null or next_at <= nursery_queue.now() then least(burst, 999999) + 1
            else greatest(0, least(999999, floor(
                     extract(epoch from nursery_queue.now()
                             - nursery_queue.allowed_at(next_at, count, per, burst))
                     * count / per::numeric)) + 1)::integer end;

-- Tasks claimed before there was a limit count against it, too. Then rings: there may be room now,
-- or workers may hold tasks that are not to start any more. With the owner's rights, so that
-- setting a queue needs none on tasks.
create function nursery_queue.count_and_ring() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update nursery_queue.running
       set pool = task.queue
      from nursery_queue.task
     where task.id = running.task_id
       and running.pool is null
       and task.queue in (select name from nursery_queue.queue
                           where num_nonnulls(max_running, max_running_per_key) > 0);
    perform pg_notify('nursery_queue', ''), pg_notify('nursery_queue_cancel', '');
    return null;
end
$$;

-- A rate that has been raised counts at once: what has started under the old one is as if the new
-- one had always been. Only of the queues that have been set, of which no claim is under way: what
-- others have used stays used (tests/pg/test_limits.py).
create function nursery_queue.count_rates() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update nursery_queue.rate
       set next_at = latest
      from (select name, false as of_key,
                   nursery_queue.clock() + nursery_queue.span(rate_burst, rate_count, rate_per)
                   + nursery_queue.span(1, rate_count, rate_per) as latest
              from changed where rate_count is not null
             union all
            select name, true,
                   nursery_queue.clock()
                   + nursery_queue.span(key_rate_burst, key_rate_count, key_rate_per)
                   + nursery_queue.span(1, key_rate_count, key_rate_per)
              from changed where key_rate_count is not null) as now
     where rate.queue = now.name and (rate.key <> '') = now.of_key and next_at > latest;
    return null;
end
$$;

create trigger count_and_ring after insert or update or delete on nursery_queue.queue
    for each statement execute function nursery_queue.count_and_ring();
create trigger count_rates_of_new after insert on nursery_queue.queue
    referencing new table as changed
    for each statement execute function nursery_queue.count_rates();
create trigger count_rates_of_changed after update on nursery_queue.queue
    referencing new table as changed
    for each statement execute function nursery_queue.count_rates();

-- Whether something holds for this queue that all its claims have to agree on.
create function nursery_queue.is_limited(queue nursery_queue.queue) returns boolean
language sql immutable parallel safe
return num_nonnulls(queue.max_running, queue.max_running_per_key, queue.rate_count,
                    queue.key_rate_count) > 0;

-- Finds the pairs of a queue and a task type that a claim looks at: pairs with ready tasks, in the
-- order of ready_key, from the first after (`after_queue`, `after_type`) on; of `queues` only
-- (null: of all), in their order, of which `after_queue` is the first or none. Queues where nothing
-- may start are stepped over, and so are types other than `types` (`unknown_types`: there was one):
-- one probe each, however many tasks they have. Ends after `most_queues` queues or `most_steps`
-- probes, and then says where the next walk is to begin (null: there are no more).
create function nursery_queue.walk(
    queues text[], types text[], after_queue text, after_type text,
    most_queues integer, most_steps integer,
    out pair_queues text[], out pair_types text[], out unknown_types boolean,
    out resume_queue text, out resume_type text
)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    here text := after_queue; -- where the walk is
    kind text := after_type;
    next_queue text;
    next_type text;
    served boolean; -- something of `here` may start; null: not known yet
    walked integer := 0; -- queues, without the ones stepped over
    name_number integer := 1;
begin
    pair_queues := '{}';
    pair_types := '{}';
    unknown_types := false;
    if here is distinct from queues[1] and queues is not null then
        here := queues[1];
        kind := '';
    end if;
    for step in 1 .. most_steps loop
        next_type := null;
        if queues is null and served is distinct from false then
            select ready.queue, ready.task_type into next_queue, next_type
              from nursery_queue.ready
             where (ready.queue, ready.task_type) > (here, kind)
             order by ready.queue, ready.task_type limit 1;
        elsif queues is null then
            select ready.queue, ready.task_type into next_queue, next_type
              from nursery_queue.ready
             where ready.queue > here
             order by ready.queue, ready.task_type limit 1;
        elsif served is distinct from false then
            next_queue := here;
            select ready.task_type into next_type
              from nursery_queue.ready
             where ready.queue = here and ready.task_type > kind
             order by ready.task_type limit 1;
        end if;
        if next_type is null then
            name_number := name_number + 1;
            here := queues[name_number];
            if here is null then
                return;
            end if;
            kind := '';
            served := null;
            continue;
        end if;
        if served is null or next_queue <> here then
            if walked = most_queues then
                resume_queue := here;
                resume_type := kind;
                return;
            end if;
            served := not exists (select from nursery_queue.queue
                                   where name = next_queue and (paused or max_running = 0));
            walked := walked + served::int;
        end if;
        here := next_queue;
        kind := next_type;
        if served and kind = any(types) then
            pair_queues := pair_queues || here;
            pair_types := pair_types || kind;
        elsif served then
            unknown_types := true;
        end if;
    end loop;
    resume_queue := here;
    resume_type := kind;
end
$$;

-- How many tasks of each of these pairs are among the best `total` of all of them, if no queue
-- gives more than its slots, and no pair more than there are (`at_most`, null: not known). Looks at about 4 * `total` + 500 positions, evenly of all pairs.
-- Where a pair has more, some of these may be as good as its last that was looked at: tasks of
-- other pairs that are worse than that have to wait (`more`).
create function nursery_queue.shares(
    pair_queues text[], pair_types text[], pair_slots integer[], total integer,
    at_most integer[], out most integer[], out more boolean
)
language plpgsql stable set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan -- to plan it takes longer than to run it
as $$
declare
    pairs integer := coalesce(cardinality(pair_queues), 0);
    deep integer := 1 + (4 * total + 500) / greatest(1, pairs);
begin
    more := false;
    if pairs < 2 then
        most := array[least(pair_slots[1], total)];
        return; -- the usual case
    end if;
    with candidate as materialized (
        select pair.number, pair.queue, pair.slots, found.priority, found.task_id
          from unnest(pair_queues, pair_types, pair_slots, at_most) with ordinality
                    as pair (queue, task_type, slots, at_most, number)
         cross join lateral (select ready.priority, ready.task_id
                               from nursery_queue.ready
                              where ready.queue = pair.queue
                                and ready.task_type = pair.task_type
                              order by ready.priority desc, ready.key, ready.task_id
                              limit least(pair.slots, total, deep, pair.at_most)) as found
    ), beyond as materialized (
        select max(worst) as priority
          from (select min(priority) as worst from candidate
                 group by number, slots
                having count(*) = deep and deep < least(slots, total)) as pair
    ), ranked as (
        select number, slots, priority, task_id,
               row_number() over (partition by queue order by priority desc, task_id) as rank
          from candidate
         where priority >= coalesce((select beyond.priority from beyond), priority)
    ), best as (
        select number from ranked
         where rank <= slots
         order by priority desc, task_id
         limit total
    )
    select array_agg(coalesce(share.count, 0) order by pair),
           (select priority from beyond) is not null
      into most, more
      from generate_series(1, pairs) as pair
      left join (select number, count(*) from best group by number) as share
        on share.number = pair;
end
$$;

-- Tells which of these queues, in order, may not start all that their workers have room for. One
-- that is paused (`closed`); one that another transaction is changing (`changing`: ask again); one
-- with a limit or a rate (`limited`): `free` may start. Of these a claim takes no more than `soon`,
-- which start at once, so that what it holds ahead keeps nobody else's slots idle, and none starts
-- later than its rate says; unless the limit is far away, as against the `most` of one claim. With
-- a rate it is no more than `at_once`: the claim is the start. `by_rate`: the rate is what allows no
-- more. Until the commit no other claim gets an answer for a queue that is limited, and none of these
-- queues is changed (tests/pg/test_limits.py).
create function nursery_queue.room(
    queues text[], most integer, soon integer, at_once integer,
    out limited text[], out free integer[], out by_rate boolean[], out closed text[],
    out changing text[]
)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    each text;
    before text := '';
begin
    limited := '{}';
    closed := '{}';
    changing := '{}';
    foreach each in array queues loop
        continue when each = before;
        before := each;
        -- However long that transaction lasts, only this queue waits for it.
        if not pg_try_advisory_xact_lock_shared(
                   hashtextextended('nursery_queue.queue.' || each, 0)) then
            changing := changing || each;
        end if;
    end loop;
    if changing = '{}'
       and not exists (select from nursery_queue.queue
                        where name = any(queues) and (paused or nursery_queue.is_limited(queue)))
    then
        return; -- the usual case
    end if;
    for each in select name from nursery_queue.queue
                 where name = any(queues) and name <> all(changing)
                   and nursery_queue.is_limited(queue) and not paused
                   and max_running is distinct from 0
                 order by name -- so that two claims cannot wait for each other
    loop
        perform pg_advisory_xact_lock(hashtextextended('nursery_queue.pool.' || each, 0));
    end loop;
    -- A statement of its own: it sees the commits that came while the ones before it waited.
    select coalesce(array_agg(name) filter (where not paused), '{}'),
           array_agg(least(slots, tokens,
                           case when rate_count is not null or key_rate_count is not null
                                then least(soon, at_once)
                                when slots <= 4 * most then soon end,
                           most)) filter (where not paused),
           array_agg(coalesce(tokens <= least(slots, soon, at_once, most), false)) filter (where not paused),
           coalesce(array_agg(name) filter (where paused), '{}')
      into limited, free, by_rate, closed
      from nursery_queue.queue as pool
      left join nursery_queue.rate on rate.queue = name and rate.key = ''
     cross join lateral (
         select case when max_running is not null
                     then greatest(0, max_running - (select count(*) from nursery_queue.running
                                                      where running.pool = name)) end::integer
                    as slots,
                case when rate_count is not null
                     then nursery_queue.tokens(next_at, rate_count, rate_per, rate_burst) end
                    as tokens
         offset 0 -- so that it is worked out once
     ) as left_of
     where name = any(queues) and name <> all(changing)
       and (paused or nursery_queue.is_limited(pool));
end
$$;

-- Puts ready tasks of types that no live worker knows out of the way of claims: up to `most`
-- tasks of the next `most_pairs` pairs of a queue and a type after (`after_queue`, `after_type`).
-- Answers how many, and where the next call is to begin (null: at the first pair).
create function nursery_queue.park(
    most integer, after_queue text default '', after_type text default '',
    most_pairs integer default 1000,
    out moved integer, out resume_queue text, out resume_type text
)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    -- A worker that registers and unparks its types waits for this lock, or is seen below
    -- (tests/engine/test_unknown_types.py).
    perform pg_advisory_xact_lock_shared(hashtextextended('nursery_queue.parked', 0));
    with recursive known as materialized (
        select distinct unnest(task_types) as task_type from nursery_queue.worker
         where heartbeat_at >= nursery_queue.now() - make_interval(secs => lease)
    ), pair (queue, task_type, number) as (
        -- Every pair that has ready tasks, one index probe each.
        select park.after_queue, park.after_type, 0
         union all
        select next.queue, next.task_type, pair.number + 1
          from pair
         cross join lateral (select ready.queue, ready.task_type from nursery_queue.ready
                              where (ready.queue, ready.task_type)
                                    > (pair.queue, pair.task_type)
                              order by ready.queue, ready.task_type
                              limit 1) as next
         where pair.number < park.most_pairs
    ), walked as materialized (
        select queue, task_type, number from pair
    ), unknown as materialized (
        select head.place
          from walked
         cross join lateral (select ready.ctid as place
                               from nursery_queue.ready
                              where ready.queue = walked.queue
                                and ready.task_type = walked.task_type
                              order by ready.priority desc, ready.key, ready.task_id
                              limit most) as head
         where walked.number > 0
           and not exists (select from known where known.task_type = walked.task_type)
         limit most
    ), free as materialized (
        select ctid as place from nursery_queue.ready
         where ctid = any(array(select place from unknown))
           for update skip locked
    ), gone as (
        delete from nursery_queue.ready
         where ctid = any(array(select place from free))
        returning task_id, queue, priority, task_type, key, due_at, attempt, epoch, lost, suspect
    ), put as (
        insert into nursery_queue.parked (task_id, queue, priority, task_type, key, due_at,
                                          attempt, epoch, lost, suspect)
        select task_id, queue, priority, task_type, key, due_at, attempt, epoch, lost, suspect
          from gone
        returning task_id
    )
    select (select count(*) from put), last.queue, last.task_type
      into moved, resume_queue, resume_type
      from walked as last
     order by last.number desc
     limit 1;
    if moved > 0 then -- there may be more of them here
        resume_queue := after_queue;
        resume_type := after_type;
    elsif not exists (select from nursery_queue.ready
                       where (ready.queue, ready.task_type) > (resume_queue, resume_type)) then
        resume_queue := null;
        resume_type := null;
    end if;
end
$$;

-- Brings up to `most` parked tasks of these types back. Answers how many, and rings.
create function nursery_queue.unpark(types text[], most integer) returns integer
language plpgsql set search_path = pg_catalog, pg_temp
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
        returning task_id, queue, priority, task_type, key, due_at, attempt, epoch, lost, suspect
    ), put as (
        insert into nursery_queue.ready (task_id, queue, priority, task_type, key, due_at,
                                         attempt, epoch, lost, suspect)
        select task_id, queue, priority, task_type, key, due_at, attempt, epoch, lost, suspect
          from gone
        returning task_id
    )
    select count(*) into moved from put;
    if moved > 0 then
        perform pg_notify('nursery_queue', '');
    end if;
    return moved;
end
$$;
