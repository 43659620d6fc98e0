-- Lanes: the tasks of one queue, task type, priority and key. A claim goes round the lanes of the
-- best priority, so that no key waits for the backlog of another, and takes of each what its key is
-- allowed.

-- Where the last claim stopped going round.
create table nursery_queue.turn (
    queue     text not null,
    task_type text not null,
    priority  integer not null,
    key       text collate "C" not null, -- the last that was served
    served_at timestamptz not null default nursery_queue.now(),
    primary key (queue, task_type, priority)
) with (fillfactor = 50);
comment on table nursery_queue.turn is 'Whose turn it is: the key that was served last.';

-- Whether tasks of these pairs are to be taken lane by lane: their queue says how many tasks of a
-- key may run or start, or some of the best eight priorities have keys.
create function nursery_queue.keyed(pair_queues text[], pair_types text[], limited text[])
returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    level bigint;
begin
    if limited <> '{}'
       and exists (select from nursery_queue.queue
                    where name = any(limited)
                      and num_nonnulls(max_running_per_key, key_rate_count) > 0) then
        return true;
    end if;
    for here in 1 .. cardinality(pair_queues) loop
        level := null;
        for levels in 1 .. 8 loop
            level := (select ready.priority from nursery_queue.ready
                       where ready.queue = pair_queues[here] and ready.task_type = pair_types[here]
                         and ready.priority < coalesce(level, 2147483648)
                       order by ready.priority desc, ready.key limit 1);
            exit when level is null;
            if exists (select from nursery_queue.ready
                        where ready.queue = pair_queues[here]
                          and ready.task_type = pair_types[here]
                          and ready.priority = level and ready.key > '') then
                return true;
            end if;
        end loop;
    end loop;
    return false;
end
$$;

-- Finds lanes of one pair of which something may start, up to `most_open`, from the best priority
-- on; of each priority from the key after the one whose turn it was last, and once round. At most
-- `steps` probes. One that ends sooner without having found anything says where it was (`left_at`):
-- the next call goes on there.
create function nursery_queue.open_lanes(
    pair_queue text, pair_type text, most_open integer, left_at jsonb, inout steps integer,
    out priorities integer[], out keys text[], out allowed integer[],
    out stopped_at jsonb, out limits_keys boolean, out full_keys boolean, out until timestamptz
)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    rule nursery_queue.queue;
    level integer;
    first text; -- the least key to come
    turn text; -- where this round ends
    wrapped boolean;
    next_key text;
    may integer;
    next_at timestamptz;
begin
    priorities := '{}';
    keys := '{}';
    allowed := '{}';
    full_keys := false;
    select * into rule from nursery_queue.queue where name = pair_queue;
    limits_keys := rule.max_running_per_key is not null;
    level := coalesce((left_at ->> 'priority')::integer,
                      (select ready.priority from nursery_queue.ready
                        where ready.queue = pair_queue and ready.task_type = pair_type
                        order by ready.priority desc limit 1));
    while level is not null loop
        if left_at is null then
            turn := (select turn.key from nursery_queue.turn
                      where turn.queue = pair_queue and turn.task_type = pair_type
                        and turn.priority = level);
            first := coalesce(turn || e'\x01', ''); -- what comes next: no key has that character
            wrapped := turn is null;
        else
            turn := left_at ->> 'turn';
            first := (left_at ->> 'key') || e'\x01';
            wrapped := (left_at ->> 'wrapped')::boolean;
            left_at := null;
        end if;
        loop
            steps := steps - 1;
            next_key := (select ready.key from nursery_queue.ready
                          where ready.queue = pair_queue and ready.task_type = pair_type
                            and ready.priority = level and ready.key >= first
                          order by ready.key limit 1);
            if next_key is null and not wrapped then
                wrapped := true;
                first := '';
                continue;
            end if;
            exit when next_key is null or wrapped and next_key > turn;
            first := next_key || e'\x01';
            may := 1000000;
            if next_key <> '' and rule.max_running_per_key is not null then
                may := greatest(0, rule.max_running_per_key
                                   - (select count(*) from nursery_queue.running
                                       where running.pool = pair_queue
                                         and running.key = next_key))::integer;
                full_keys := full_keys or may = 0 and rule.max_running_per_key > 0;
            end if;
            if may > 0 and next_key <> '' and rule.key_rate_count is not null then
                next_at := (select rate.next_at from nursery_queue.rate
                             where rate.queue = pair_queue and rate.key = next_key);
                may := least(may, nursery_queue.tokens(next_at, rule.key_rate_count,
                                                       rule.key_rate_per, rule.key_rate_burst));
                if may = 0 then
                    until := least(until, nursery_queue.allowed_at(
                        next_at, rule.key_rate_count, rule.key_rate_per, rule.key_rate_burst));
                end if;
            end if;
            if may > 0 then
                priorities := priorities || level;
                keys := keys || next_key;
                allowed := allowed || may;
                if cardinality(keys) >= most_open then
                    return;
                end if;
            end if;
            if steps <= 0 then
                stopped_at := jsonb_build_object('priority', level, 'key', next_key, 'turn', turn,
                                                 'wrapped', wrapped);
                return;
            end if;
        end loop;
        level := (select ready.priority from nursery_queue.ready
                   where ready.queue = pair_queue and ready.task_type = pair_type
                     and ready.priority < level
                   order by ready.priority desc limit 1);
    end loop;
end
$$;

-- Finds the lanes of these pairs of which something may start: 64, or four of each pair, with about
-- `steps` probes. Of each how many its key allows, whether that is for a limit of the key (`limits`),
-- and how many its queue may have: of one that limits its keys no more than `soon`, which start at
-- once, unless there are lanes enough for everybody. If it ends before it has found anything in the
-- pair numbered `stopped`, the next claim is to go on there, at `stopped_at` (null: at the next
-- pair). How many to take of each, `share_lanes` says.
create function nursery_queue.find_lanes(
    pair_queues text[], pair_types text[], pair_slots integer[], soon integer, steps integer,
    left_at jsonb,
    out queues text[], out types text[], out priorities integer[], out keys text[],
    out allowed integer[], out limits boolean[], out pairs integer[], out slots integer[],
    out more boolean, out full_keys boolean, out until timestamptz,
    out stopped integer, out stopped_at jsonb
)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    several integer; -- lanes of a pair
    most_open integer := greatest(4, 64 / greatest(1, cardinality(pair_queues)));
    opened record;
begin
    queues := '{}';
    types := '{}';
    priorities := '{}';
    keys := '{}';
    allowed := '{}';
    limits := '{}';
    pairs := '{}';
    slots := '{}';
    full_keys := false;
    more := false;
    for here in 1 .. cardinality(pair_queues) loop
        opened := nursery_queue.open_lanes(pair_queues[here], pair_types[here], most_open,
                                           case when here = 1 then left_at end, steps);
        several := cardinality(opened.keys);
        queues := queues || array_fill(pair_queues[here], array[several]);
        types := types || array_fill(pair_types[here], array[several]);
        priorities := priorities || opened.priorities;
        keys := keys || opened.keys;
        allowed := allowed || opened.allowed;
        limits := limits || array_fill(opened.limits_keys, array[several]);
        pairs := pairs || array_fill(here, array[several]);
        slots := slots || array_fill(
            case when opened.limits_keys and several < most_open
                 then least(pair_slots[here], soon) else pair_slots[here] end, array[several]);
        full_keys := full_keys or opened.full_keys;
        until := least(until, opened.until);
        more := more or several = most_open or opened.stopped_at is not null and several > 0;
        steps := opened.steps;
        if steps <= 0 and here < cardinality(pair_queues)
           or opened.stopped_at is not null and several = 0 then
            stopped := here;
            stopped_at := case when several = 0 then opened.stopped_at end;
            exit;
        end if;
    end loop;
end
$$;

-- What `share_lanes` does for lanes of one queue, type and priority, so of as many keys, each no more
-- than `deep`: one of each in turn is all there is to it. Takes a tenth of the time of what follows.
create function nursery_queue.share_keys(
    queue text, task_type text, priority integer, lane_keys text[], lane_allowed integer[],
    limits boolean, slots integer, total integer, deep integer, at_most integer[],
    out most integer[], out more boolean, out full_keys boolean
)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    with lane as materialized (
        select number, lane.allowed,
               (select count(*)
                  from (select from nursery_queue.ready
                         where ready.queue = share_keys.queue
                           and ready.task_type = share_keys.task_type
                           and ready.priority = share_keys.priority and ready.key = lane.key
                         limit least(lane.allowed, slots + 1, total + 1, deep, lane.at_most))
                        as found) as depth
          from unnest(lane_keys, lane_allowed, at_most) with ordinality
                    as lane (key, allowed, at_most, number)
    ), share as (
        select number, count(*)
          from (select number from lane cross join generate_series(1, depth) as round
                 order by round, number
                 limit least(slots, total)) as seat
         group by number
    )
    select array_agg(coalesce(share.count, 0) order by number),
           coalesce(bool_or(depth = deep and deep < least(allowed, slots, total)), false),
           coalesce(limits and sum(depth) > slots, false)
      into most, more, full_keys
      from lane left join share using (number);
end
$$;

-- The same of lanes of any queues, types and priorities. Of each priority of a queue as many as are
-- among the best of all, and of these one of each key in turn.
create function nursery_queue.share_levels(
    lane_queues text[], lane_types text[], lane_priorities integer[], lane_keys text[],
    lane_allowed integer[], lane_limits boolean[], lane_pairs integer[], lane_slots integer[],
    total integer, deep integer, at_most integer[],
    out most integer[], out more boolean, out full_keys boolean
)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    with candidate as materialized (
        select lane.*, found.task_id
          from unnest(lane_queues, lane_types, lane_priorities, lane_keys, lane_allowed,
                      lane_limits, lane_pairs, lane_slots, at_most)
                   with ordinality
                    as lane (queue, task_type, priority, key, allowed, limits, pair, slots,
                             at_most, number)
         cross join lateral (
             select ready.task_id from nursery_queue.ready
              where ready.queue = lane.queue and ready.task_type = lane.task_type
                and ready.priority = lane.priority and ready.key = lane.key
              order by ready.task_id
              limit least(lane.allowed, lane.slots + 1, total + 1, deep, lane.at_most)) as found
    ), of_key as (
        select *, row_number() over (partition by queue, key
                                         order by priority desc, task_id) as nth_of_key
          from candidate
    ), of_queue as (
        select *, row_number() over (partition by queue
                                         order by priority desc, task_id) <= slots as fits
          from of_key where nth_of_key <= allowed
    ), seated as (
        select *, number - min(number) over (partition by pair, priority) as seat,
               row_number() over (partition by queue, priority, key order by task_id) as round
          from of_queue
    ), ranked as (
        select number, queue, priority, fits,
               row_number() over (order by fits desc, priority desc, task_id) as place,
               row_number() over (partition by queue, priority order by round, seat, pair) as turn
          from seated
    ), shared as (
        -- As many of each queue as are among the best, and of these one of each key in turn.
        select number, turn,
               count(*) filter (where fits and place <= total)
                   over (partition by queue, priority) as share
          from ranked
    )
    select array_agg(coalesce(taken.count, 0) order by lane),
           exists (select from candidate group by number, allowed, slots
                   having count(*) = deep and deep < least(allowed, slots, total)),
           exists (select from of_queue where limits and not fits)
               -- Another lane of the key has taken what it is allowed.
               or exists (select from of_key where limits and key <> '' and nth_of_key > allowed)
      into most, more, full_keys
      from generate_series(1, cardinality(lane_keys)) as lane
      left join (select number, count(*) from shared where turn <= share group by number) as taken
        on taken.number = lane;
end
$$;

-- How many tasks to take of each of these lanes: the best `total`, of each queue no more than its
-- slots, of each key no more than it is allowed, of each lane no more than there are (`at_most`,
-- null: not known), and within a priority of a queue one of each key in turn.
create function nursery_queue.share_lanes(
    lane_queues text[], lane_types text[], lane_priorities integer[], lane_keys text[],
    lane_allowed integer[], lane_limits boolean[], lane_pairs integer[], lane_slots integer[],
    total integer, at_most integer[],
    out most integer[], out more boolean, out full_keys boolean
)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    deep integer := 1 + (4 * total + 500) / greatest(1, cardinality(lane_keys));
    shared record;
begin
    if lane_pairs[1] = all(lane_pairs) and lane_priorities[1] = all(lane_priorities) then
        shared := nursery_queue.share_keys(
            lane_queues[1], lane_types[1], lane_priorities[1], lane_keys, lane_allowed,
            lane_limits[1], lane_slots[1], total, deep, at_most);
    else
        shared := nursery_queue.share_levels(
            lane_queues, lane_types, lane_priorities, lane_keys, lane_allowed, lane_limits,
            lane_pairs, lane_slots, total, deep, at_most);
    end if;
    most := shared.most;
    more := shared.more;
    full_keys := shared.full_keys;
    -- Those that have come to the limit by this claim, and have more.
    for here in 1 .. cardinality(lane_keys) loop
        exit when full_keys;
        continue when not lane_limits[here] or lane_keys[here] = ''
                      or most[here] < lane_allowed[here]; -- costs less than to ask
        full_keys := exists (select from nursery_queue.ready
                             where ready.queue = lane_queues[here]
                               and ready.task_type = lane_types[here]
                               and ready.priority = lane_priorities[here]
                               and ready.key = lane_keys[here]
                            offset most[here]);
    end loop;
end
$$;

-- Notes whose turn it was: of each priority of a queue and type that has several lanes, the one at
-- which going round has stopped. One of which nothing could be taken, since another transaction
-- holds all of it, has had its turn (`asked`: how many were to be taken, by lane). Does not wait for
-- another claim that is noting the same.
create function nursery_queue.take_turns(
    queues text[], types text[], priorities integer[], keys text[], asked integer[]
) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    with served as materialized (
        select distinct on (queue, task_type, priority) queue, task_type, priority, key
          from (select *, count(*) over (partition by queue, task_type, priority) as lanes
                  from unnest(queues, types, priorities, keys, asked) with ordinality
                            as lane (queue, task_type, priority, key, asked, number)) as lane
         where lanes > 1 and lane.asked > 0
         order by queue, task_type, priority, lane.asked desc, number desc
    ), free as materialized (
        select turn.ctid as place, served.key
          from served
          join nursery_queue.turn using (queue, task_type, priority)
           for no key update of turn skip locked
    ), moved as (
        update nursery_queue.turn set key = free.key, served_at = nursery_queue.now()
          from free
         where turn.ctid = free.place
    )
    insert into nursery_queue.turn (queue, task_type, priority, key)
    select queue, task_type, priority, key from served
     where not exists (select from nursery_queue.turn
                        where turn.queue = served.queue and turn.task_type = served.task_type
                          and turn.priority = served.priority)
        on conflict do nothing;
end
$$;

-- Counts starts against the rates of queues and keys (`taken`: how many, by lane; `keys` is null
-- where pairs were not divided; `at`: when, as the log has it. A claim may have waited since it
-- began, and by the starts of that time a window would have more than it may: 624 for 620 under
-- four workers, tests/support/flow_drill.py). Answers the instant at which the first of these
-- lanes, or of the `limited` queues, may have another start, where tasks are waiting for it; null:
-- for none.
create function nursery_queue.use_rates(
    limited text[], asked_types text[], queues text[], types text[], priorities integer[],
    keys text[], taken integer[], at timestamptz
) returns timestamptz
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    insert into nursery_queue.rate as known (queue, key, next_at)
    select queue, key, use_rates.at + nursery_queue.span(starts, count, per)
      from (select queue.name as queue, '' as key, sum(lane.taken) as starts,
                   rate_count as count, rate_per as per
              from unnest(queues, taken) as lane (name, taken)
              join nursery_queue.queue using (name)
             where rate_count is not null
             group by queue.name
             union all
            select queue.name, lane.key, sum(lane.taken), key_rate_count, key_rate_per
              from unnest(queues, keys, taken) as lane (name, key, taken)
              join nursery_queue.queue using (name)
             where key_rate_count is not null and lane.key <> ''
             group by queue.name, lane.key) as used
     where starts > 0
        on conflict (queue, key) do update
       set next_at = greatest(
                         case when known.next_at <= nursery_queue.now() + interval '1 minute'
                              then known.next_at
                              when known.key = ''
                              then (select nursery_queue.believed(known.next_at, rate_count,
                                                                  rate_per, rate_burst)
                                      from nursery_queue.queue where name = known.queue)
                              else (select nursery_queue.believed(known.next_at, key_rate_count,
                                                                  key_rate_per, key_rate_burst)
                                      from nursery_queue.queue where name = known.queue) end,
                         use_rates.at)
                     + (excluded.next_at - use_rates.at);
    return (
        select min(allowed_at)
          from (select nursery_queue.allowed_at(next_at, rate_count, rate_per, rate_burst)
                           as allowed_at
                  from nursery_queue.queue
                  join nursery_queue.rate on rate.queue = queue.name and rate.key = ''
                 where queue.name = any(limited) and rate_count is not null
                   and exists (select from nursery_queue.ready
                                where ready.queue = queue.name
                                  and ready.task_type = any(asked_types))
                 union all
                select nursery_queue.allowed_at(next_at, key_rate_count, key_rate_per,
                                                key_rate_burst)
                  from unnest(queues, types, priorities, keys)
                           as lane (queue, task_type, priority, key)
                  join nursery_queue.queue on queue.name = lane.queue
                  join nursery_queue.rate on rate.queue = lane.queue and rate.key = lane.key
                 where lane.key <> '' and key_rate_count is not null
                   and exists (select from nursery_queue.ready
                                where ready.queue = lane.queue
                                  and ready.task_type = lane.task_type
                                  and ready.priority = lane.priority
                                  and ready.key = lane.key)) as held
         where allowed_at > nursery_queue.now());
end
$$;
