-- The claim: a worker takes tasks.

-- Of which of these pairs something may start, and how many tasks at most: as many as were asked
-- for, but nothing of queues that are `closed`, and of `limited` ones no more than are free.
create function nursery_queue.offered(
    pair_queues text[], pair_types text[], asked_queues text[], asked_slots integer[],
    most integer, limited text[], free integer[], closed text[],
    out queues text[], out types text[], out slots integer[]
)
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    if limited = '{}' and closed = '{}' and asked_queues is null then
        queues := pair_queues;
        types := pair_types;
        slots := array_fill(most, array[cardinality(pair_queues)]);
        return; -- the usual case
    end if;
    select coalesce(array_agg(queue order by number), '{}'),
           coalesce(array_agg(task_type order by number), '{}'),
           coalesce(array_agg(least(coalesce(asked.slots, most), room.free) order by number), '{}')
      into queues, types, slots
      from unnest(pair_queues, pair_types) with ordinality as pair (queue, task_type, number)
      left join unnest(asked_queues, asked_slots) as asked (queue, slots) using (queue)
      left join unnest(limited, free) as room (queue, free) using (queue)
     where queue <> all(closed)
       and coalesce(room.free > 0, true);
end
$$;

-- Whether some of these pairs has ready tasks left, though fewer were taken of its queue (`taken`,
-- by pair) than its slots.
create function nursery_queue.left_over(
    pair_queues text[], pair_types text[], pair_slots integer[], taken integer[]
) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    pairs integer := cardinality(pair_queues);
begin
    for here in 1 .. pairs loop
        continue when taken[here] >= pair_slots[here];
        continue when pairs > 1 and pair_slots[here] <= (
            select sum(got) from unnest(pair_queues, taken) as pair (queue, got)
             where queue = pair_queues[here]);
        if exists (select from nursery_queue.ready
                    where ready.queue = pair_queues[here]
                      and ready.task_type = pair_types[here]) then
            return true;
        end if;
    end loop;
    return false;
end
$$;

-- Whether some queue with a limit has more than was taken (`got`, by lane), for want of slots that
-- a limit allows, and not for its rate; though this worker has slots for it.
create function nursery_queue.held_back(
    pair_queues text[], pair_types text[], asked_queues text[], asked_slots integer[],
    most integer, limited text[], free integer[], by_rate boolean[], lane_queues text[],
    got integer[]
) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin -- in SQL alone it would be planned at each call, which takes 1 ms
    return exists (
        select from unnest(limited, free, by_rate) as room (queue, free, by_rate)
          left join unnest(asked_queues, asked_slots) as asked (queue, slots) using (queue)
         cross join lateral (select coalesce(sum(lane.got), 0) as count
                               from unnest(lane_queues, got) as lane (queue, got)
                              where lane.queue = room.queue) as taken
         where taken.count >= room.free
           and taken.count < coalesce(asked.slots, most)
           and not room.by_rate
           and exists (select from unnest(pair_queues, pair_types) as pair (queue, task_type)
                         join nursery_queue.ready using (queue, task_type)
                        where pair.queue = room.queue));
end
$$;

-- Locks the best tasks of each of these pairs (`keys` is null), or lanes: as many as are asked for,
-- or as there are that nobody else holds. Answers where they are, and how many of each.
create function nursery_queue.pick(
    queues text[], types text[], priorities integer[], keys text[], asked integer[],
    out places tid[], out got integer[]
)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    picked tid[];
begin
    places := '{}';
    got := '{}';
    for here in 1 .. cardinality(queues) loop
        if keys is null then
            picked := array(select ready.ctid from nursery_queue.ready
                            where ready.queue = queues[here] and ready.task_type = types[here]
                            order by ready.priority desc, ready.key, ready.task_id
                            limit asked[here]
                              for update skip locked);
        elsif asked[here] > 0 then
            picked := array(select ready.ctid from nursery_queue.ready
                            where ready.queue = queues[here] and ready.task_type = types[here]
                              and ready.priority = priorities[here] and ready.key = keys[here]
                            order by ready.task_id
                            limit asked[here]
                              for update skip locked);
        else
            picked := '{}';
        end if;
        places := places || picked;
        got := got || cardinality(picked);
    end loop;
end
$$;

-- Takes up to `most` ready tasks of the types and queues that a worker serves, best priority first,
-- oldest first, or where they have keys one of each in turn; never one that another claim is taking
-- at this moment. Of a queue in `queues` no more than its slots are taken (null: of all queues, any
-- number). How many may start of a queue is asked before any row is locked; the rows are picked once
-- and then found by ctid, so no plan takes more. The best `at_once` of all are noted as started; the
-- others are held ahead. What is limited is taken `soon` only: see nursery_queue.room.
--
-- Bounded however many tasks, queues and keys there are: looks at no more than `most_queues` queues
-- and about 64 lanes, from (`after_queue`, `after_type`, `after_lane`) on, and says where the next
-- claim is to go on (null: it has come to the end); reads about 4 * `most` + 500 positions and locks
-- `most` (tests/pg/test_many_queues.py, test_plans.py).
--
-- Answers a row for each task, and then one for the claim as a whole. In many small statements: a
-- single one for everything took three times as long to set up as to run, where one task came alone
-- (docs/performance.md).
create function nursery_queue.claim(
    worker uuid, types text[], queues text[], slots integer[], most integer, at_once integer,
    soon integer, after_queue text, after_type text, after_lane text, most_queues integer,
    most_steps integer
)
returns table (
    next_due double precision, contended boolean, held_back boolean, unknown_types boolean,
    more boolean, resume_queue text, resume_type text, resume_lane text,
    id bigint, epoch integer, attempt integer, lost integer, lag double precision, task_type text,
    queue text, params text, max_attempts integer, backoff jsonb, timeout double precision,
    keep_for double precision, has_completion boolean, completes bigint, suspect boolean,
    limited boolean, tick timestamptz
)
language plpgsql rows 100 set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    walked record;
    left_at jsonb; -- where the last claim stopped within the first pair
    room record;
    pairs record; -- queues, types and slots of the pairs of which something may start
    keyed boolean;
    lanes record; -- what tasks are shared out to
    lane_queues text[]; -- of the lanes, or the pairs as they are
    lane_types text[];
    lane_priorities integer[];
    lane_keys text[]; -- null: of pairs
    share record; -- how many tasks to take of each
    at_most integer[]; -- of each that gave less: another transaction holds the rest
    picked record;
    tried record; -- of each whether there is one that nobody else holds
    places tid[] := '{}';
    starting tid[]; -- of these; null: all
    until timestamptz; -- when a rate lets more start
    -- Later than all that is seen of these tasks: each statement here sees what was committed since
    -- the claim began, and no attempt begins before the last one has ended (tests/pg/test_claim.py).
    taken_at timestamptz;
begin
    walked := nursery_queue.walk(queues, types, after_queue, after_type, most_queues, most_steps);
    if after_lane is not null and after_type = any(types)
       and (queues is null or after_queue = queues[1]) then
        walked.pair_queues := after_queue || walked.pair_queues;
        walked.pair_types := after_type || walked.pair_types;
        left_at := after_lane;
    end if;
    contended := false;
    held_back := false;
    more := false;
    unknown_types := walked.unknown_types;
    resume_queue := walked.resume_queue;
    resume_type := walked.resume_type;
    if walked.pair_queues <> '{}'
       and exists (select from nursery_queue.worker where worker.id = claim.worker and not dead)
    then
        room := nursery_queue.room(walked.pair_queues, most, soon, at_once);
        pairs := nursery_queue.offered(walked.pair_queues, walked.pair_types, queues, slots, most,
                                       room.limited, room.free, room.closed || room.changing);
        keyed := nursery_queue.keyed(pairs.queues, pairs.types, room.limited);
        if keyed then
            if pairs.queues[1] is distinct from after_queue
               or pairs.types[1] is distinct from after_type then
                left_at := null;
            end if;
            lanes := nursery_queue.find_lanes(pairs.queues, pairs.types, pairs.slots, soon,
                                              most_steps, left_at);
            if lanes.stopped is not null then
                resume_queue := pairs.queues[lanes.stopped];
                resume_type := pairs.types[lanes.stopped];
                resume_lane := lanes.stopped_at::text;
            end if;
            lane_queues := lanes.queues;
            lane_types := lanes.types;
            lane_priorities := lanes.priorities;
            lane_keys := lanes.keys;
            more := lanes.more;
            held_back := lanes.full_keys;
        else
            lane_queues := pairs.queues;
            lane_types := pairs.types;
        end if;
        -- What a transaction holds that stays open is shared out anew to the others: the tasks of a
        -- few keys would keep all others waiting (tests/pg/test_held_tasks.py).
        for round in 1 .. 3 loop
            if keyed then
                share := nursery_queue.share_lanes(
                    lane_queues, lane_types, lane_priorities, lane_keys, lanes.allowed,
                    lanes.limits, lanes.pairs, lanes.slots, most, at_most);
                held_back := held_back or share.full_keys;
            else
                share := nursery_queue.shares(lane_queues, lane_types, pairs.slots, most, at_most);
            end if;
            picked := nursery_queue.pick(lane_queues, lane_types, lane_priorities, lane_keys,
                                         share.most);
            exit when picked.got = share.most or cardinality(lane_queues) < 2;
            if at_most is null then
                tried := nursery_queue.pick(lane_queues, lane_types, lane_priorities, lane_keys,
                                            array_fill(1, array[cardinality(lane_queues)]));
            end if;
            at_most := array(
                select case when got < asked then got when found = 0 then 0 else known end
                  from unnest(share.most, picked.got, tried.got, at_most) with ordinality
                            as lane (asked, got, found, known, number)
                 order by number);
        end loop;
        places := picked.places;
        if cardinality(places) > at_once then
            starting := array(select ready.ctid from nursery_queue.ready where ctid = any(places)
                               order by ready.priority desc, ready.task_id limit at_once);
        end if;
        if places <> '{}' then
            taken_at := nursery_queue.clock();
            return query
            with taken as (
                delete from nursery_queue.ready
                 where ctid = any(places)
                returning task_id, attempt + 1 as attempt, epoch + 1 as epoch, lost, suspect,
                          coalesce(ctid = any(starting), true) as started,
                          queue = any(room.limited) as limited, queue, key,
                          extract(epoch from taken_at - due_at)::float8 as lag
            ), held as (
                insert into nursery_queue.running (task_id, worker_id, attempt, epoch, lost,
                                                   started_at, pool, started, suspect, key)
                select task_id, claim.worker, attempt, epoch, lost, taken_at,
                       case when limited then queue end, started, suspect, key
                  from taken
            )
            select null::float8, null::boolean, null::boolean, null::boolean, null::boolean,
                   null::text, null::text, null::text,
                   -- With their types: the owner of the tables may have changed them
                   -- (tests/faults/test_refusals.py).
                   task.id::bigint, taken.epoch::integer, taken.attempt::integer,
                   taken.lost::integer, taken.lag, task.task_type::text, task.queue::text,
                   task.params::text, task.max_attempts::integer, task.backoff::jsonb,
                   task.timeout::float8, task.keep_for::float8, task.on_complete is not null,
                   task.completes::bigint, taken.suspect, taken.limited, task.tick::timestamptz
              from taken
              -- Looked up one by one: a join may be planned as a walk through all tasks (offset 0).
             cross join lateral (select * from nursery_queue.task
                                  where task.id = taken.task_id offset 0) as task
             order by task.priority desc, task.id;
        end if;
        more := (more or share.more) and cardinality(places) < most
            and (places <> '{}' or at_most is null);
        if more and keyed then -- keys that wait for slots of their queue may not start at once
            more := exists (select from unnest(lane_queues, lanes.slots, picked.got)
                                     as lane (queue, slots, got)
                             group by queue having sum(got) < max(slots));
        end if;
        -- Some queue is being changed, or another claim is taking what this one would have.
        contended := room.changing <> '{}'
            or cardinality(places) < most and not more
               and (keyed and at_most is not null
                    or not keyed and nursery_queue.left_over(lane_queues, lane_types, pairs.slots,
                                                             picked.got));
        if room.limited <> '{}' or keyed then
            until := nursery_queue.use_rates(room.limited, types, lane_queues, lane_types,
                                             lane_priorities, lane_keys, picked.got, taken_at);
            if keyed then
                until := least(until, lanes.until);
                perform nursery_queue.take_turns(
                    lane_queues, lane_types, lane_priorities, lane_keys,
                    case when at_most is null then share.most
                         else array(select greatest(asked, (known is not null)::integer)
                                      from unnest(share.most, at_most) with ordinality
                                                as lane (asked, known, number)
                                     order by number) end);
            end if;
            held_back := coalesce(held_back, false) or nursery_queue.held_back(
                walked.pair_queues, walked.pair_types, queues, slots, most, room.limited,
                room.free, room.by_rate, lane_queues, picked.got);
        end if;
    end if;
    next_due := (select extract(epoch from least(min(due_at), until) - nursery_queue.now())::float8
                   from nursery_queue.scheduled);
    return next;
end
$$;
