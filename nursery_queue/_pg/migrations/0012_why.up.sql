-- Why a task is where it is, for whoever asks: by the predicates of the claim, in words and as data.
-- No worker calls more than is_alive. All of it is bounded, however many tasks, queues and workers
-- there are (tests/pg/test_why.py).

-- Whether a worker's lease holds.
create function nursery_queue.is_alive(worker nursery_queue.worker) returns boolean
language sql stable parallel safe
return not worker.dead
       and worker.heartbeat_at >= nursery_queue.now() - make_interval(secs => worker.lease);

-- An instant, as texts have it.
create function nursery_queue.instant_text(at timestamptz) returns text
language sql stable parallel safe
return to_char(at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS') || ' UTC';

create function nursery_queue.reason(code text, words text, details jsonb) returns jsonb
language sql stable parallel safe
return jsonb_build_object('code', code, 'text', words) || details;

-- With how many characters both begin.
create function nursery_queue.common_start(one text, other text) returns integer
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    low integer := 0;
    high integer := least(length(one), length(other));
    middle integer;
begin
    while low < high loop
        middle := (low + high + 1) / 2;
        if left(one, middle) = left(other, middle) then
            low := middle;
        else
            high := middle - 1;
        end if;
    end loop;
    return low;
end
$$;

-- Which of these names is most like `asked`, by what both begin and end with, whatever the case;
-- null: of none is that half the name. First of all the one that is `asked` within some module.
create function nursery_queue.nearest(asked text, names text[]) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    wanted text := lower(asked);
    each text;
    known text;
    alike double precision;
    most double precision := 0;
    likest text;
begin
    foreach each in array names loop
        if right(lower(each), length(wanted) + 1) = '.' || wanted then
            return each;
        end if;
    end loop;
    foreach each in array names loop
        known := lower(each);
        alike := least(nursery_queue.common_start(wanted, known)
                           + nursery_queue.common_start(reverse(wanted), reverse(known)),
                       length(wanted), length(known))
                 / greatest(length(wanted), length(known))::double precision;
        if alike >= 0.5 and alike > most then
            most := alike;
            likest := each;
        end if;
    end loop;
    return likest;
end
$$;

-- Up to five of the tasks that run in a pool, or with a key of it, and their workers.
create function nursery_queue.holders(pool text, first_key text, last_key text) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_agg(jsonb_build_object('task_id', held.task_id, 'worker', worker.name)
                              order by held.task_id), '[]')
      from (select task_id, worker_id from nursery_queue.running
             where running.pool = holders.pool
               and running.key >= first_key and (last_key is null or running.key <= last_key)
             limit 5) as held
      left join nursery_queue.worker on worker.id = held.worker_id
$$;

-- Why no worker takes tasks of this type and queue: none is alive, knows the type or serves the
-- queue. One that shuts down takes none any more.
create function nursery_queue.worker_reasons(asked_type text, asked_queue text) returns jsonb[]
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    alive record;
    reasons jsonb[] := '{}';
    nearest text;
begin
    select count(*) filter (where not draining) as workers,
           count(*) filter (where draining) as draining,
           coalesce(bool_or(knows) filter (where not draining), false) as knows,
           coalesce(bool_or(serves) filter (where not draining), false) as serves,
           coalesce(bool_or(knows and serves) filter (where not draining), false) as takes
      into alive
      from (select draining, asked_type = any(task_types) as knows,
                   queues is null or asked_queue = any(queues) as serves
              from nursery_queue.worker
             where nursery_queue.is_alive(worker)
             limit 10000) as worker;
    if alive.workers = 0 then
        return array[nursery_queue.reason(
            'no_workers',
            case when alive.draining = 0 then 'no worker is alive'
                 else 'no worker takes tasks: those alive are shutting down' end,
            jsonb_build_object('draining', alive.draining))];
    end if;
    if not alive.knows then
        nearest := nursery_queue.nearest(asked_type, array(
            select name
              from (select distinct unnest(task_types) as name
                      from (select task_types from nursery_queue.worker
                             where nursery_queue.is_alive(worker) and not draining
                             limit 1000) as worker) as known
             where left(lower(name), 2) = left(lower(asked_type), 2)
                or right(lower(name), 2) = right(lower(asked_type), 2)
             order by name collate "C"
             limit 200));
        reasons := reasons || nursery_queue.reason(
            'unknown_type',
            format('none of the workers alive (%s) knows task type %s%s', alive.workers, asked_type,
                   '; the nearest name that one knows is ' || nearest),
            jsonb_build_object('task_type', asked_type, 'workers', alive.workers,
                               'nearest', nearest));
    end if;
    if not alive.serves or alive.knows and not alive.takes then
        reasons := reasons || nursery_queue.reason(
            'queue_not_served',
            format('none of the workers alive (%s) %sserves queue %s', alive.workers,
                   case when alive.serves then 'that know task type ' || asked_type || ' ' end,
                   asked_queue),
            jsonb_build_object('queue', asked_queue, 'task_type', asked_type,
                               'workers', alive.workers));
    end if;
    return reasons;
end
$$;

-- That a rate lets a task of a queue, or of one key of it, start only later; null: it may start now.
create function nursery_queue.rate_reason(
    asked_queue text, asked_key text, count integer, per double precision, burst integer
) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    known timestamptz := (select next_at from nursery_queue.rate
                           where rate.queue = asked_queue and rate.key = asked_key);
    until timestamptz := nursery_queue.allowed_at(known, count, per, burst);
begin
    if nursery_queue.tokens(known, count, per, burst) > 0 then
        return null;
    end if;
    return nursery_queue.reason(
        'rate_limited',
        format('the rate of %squeue %s, %s in %s s, lets none start before %s',
               case when asked_key <> '' then 'key ' || asked_key || ' in ' end, asked_queue,
               count, per, nursery_queue.instant_text(until)),
        jsonb_build_object('queue', asked_queue, 'key', nullif(asked_key, ''), 'until', until,
                           'count', count, 'per', per, 'burst', burst));
end
$$;

-- Why a task of this queue and key may not start: see nursery_queue.room and open_lanes, which ask
-- the same.
create function nursery_queue.queue_reasons(asked_queue text, asked_key text) returns jsonb[]
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    rule nursery_queue.queue;
    running bigint;
    lock bigint := hashtextextended('nursery_queue.queue.' || asked_queue, 0);
    reasons jsonb[] := '{}';
begin
    select * into rule from nursery_queue.queue where name = asked_queue;
    if rule.paused then
        reasons := reasons || nursery_queue.reason(
            'queue_paused', format('queue %s is paused', asked_queue),
            jsonb_build_object('queue', asked_queue));
    end if;
    if rule.max_running is not null then
        running := (select count(*) from nursery_queue.running where pool = asked_queue);
        if running >= rule.max_running then
            reasons := reasons || nursery_queue.reason(
                'queue_limit',
                format('%s tasks of queue %s run, and at most %s may', running, asked_queue,
                       rule.max_running),
                jsonb_build_object('queue', asked_queue, 'running', running,
                                   'max', rule.max_running,
                                   'held_by', nursery_queue.holders(asked_queue, '', null)));
        end if;
    end if;
    if rule.max_running_per_key is not null and asked_key <> '' then
        running := (select count(*) from nursery_queue.running
                     where pool = asked_queue and key = asked_key);
        if running >= rule.max_running_per_key then
            reasons := reasons || nursery_queue.reason(
                'key_limit',
                format('%s tasks with key %s in queue %s run, and at most %s of a key may', running,
                       asked_key, asked_queue, rule.max_running_per_key),
                jsonb_build_object('queue', asked_queue, 'key', asked_key, 'running', running,
                                   'max', rule.max_running_per_key,
                                   'held_by', nursery_queue.holders(asked_queue, asked_key,
                                                                    asked_key)));
        end if;
    end if;
    if rule.rate_count is not null then
        reasons := array_remove(reasons || nursery_queue.rate_reason(
            asked_queue, '', rule.rate_count, rule.rate_per, rule.rate_burst), null);
    end if;
    if rule.key_rate_count is not null and asked_key <> '' then
        reasons := array_remove(reasons || nursery_queue.rate_reason(
            asked_queue, asked_key, rule.key_rate_count, rule.key_rate_per, rule.key_rate_burst),
            null);
    end if;
    -- Not until the commit, as a claim has it: who asks holds no change up.
    if pg_try_advisory_lock_shared(lock) then
        perform pg_advisory_unlock_shared(lock);
    else
        reasons := reasons || nursery_queue.reason(
            'queue_being_changed',
            format('queue %s is being changed in a transaction that has not ended', asked_queue),
            jsonb_build_object('queue', asked_queue));
    end if;
    return reasons;
end
$$;

-- How many tasks of a queue have ended a second, in the last minute: as told by those of the 200
-- with the highest ids below `head` that have ended, and are kept still.
create function nursery_queue.pace(asked_queue text, head bigint) returns double precision
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select coalesce(round((count(*) filter (where seconds < 60)
                           / greatest(1, case when max(looked) < 200 then 60
                                              else least(60, max(seconds)) end))::numeric, 2), 0)
      from (select extract(epoch from nursery_queue.now() - finished_at) as seconds,
                   count(*) over () as looked, task.queue
              from (select task_id, finished_at from nursery_queue.finished
                     where task_id < head
                     order by task_id desc
                     limit 200) as ended
             cross join lateral (select queue from nursery_queue.task
                                  where task.id = ended.task_id offset 0) as task) as found
     where queue = asked_queue
$$;

-- How many ready tasks go before this one: of its lane, and of a better priority; each counted up
-- to 10,000. Null: none does, unless that is asked for (`next`).
create function nursery_queue.turn_reason(
    asked_id bigint, asked_queue text, asked_type text, asked_priority integer, asked_key text,
    next boolean
) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    most constant integer := 10000;
    head bigint;
    ahead bigint := (
        select count(*)
          from (select from nursery_queue.ready
                 where ready.queue = asked_queue and ready.task_type = asked_type
                   and ready.priority = asked_priority and ready.key = asked_key
                   and ready.task_id < asked_id
                 order by ready.task_id
                 limit most) as before);
    better bigint := (
        select count(*)
          from (select from nursery_queue.ready
                 where ready.queue = asked_queue and ready.task_type = asked_type
                   and ready.priority > asked_priority
                 order by ready.priority desc
                 limit most) as before);
    pace double precision;
begin
    if ahead = 0 and better = 0 then
        if not next then
            return null;
        end if;
        return nursery_queue.reason(
            'behind', 'it is next: it starts as soon as a worker has a slot free',
            jsonb_build_object('ahead', 0, 'better', 0, 'pace', null));
    end if;
    head := (select task_id from nursery_queue.ready
              where ready.queue = asked_queue and ready.task_type = asked_type
                and ready.priority = asked_priority and ready.key = asked_key
              order by ready.task_id
              limit 1);
    -- Whether old ones go first or new ones of a better priority: each look may miss some.
    pace := greatest(nursery_queue.pace(asked_queue, coalesce(head, asked_id)),
                     nursery_queue.pace(asked_queue, 9223372036854775807));
    return nursery_queue.reason(
        'behind',
        format('before it go %s%s tasks of its queue, type, priority and key, and %s%s of a better'
               ' priority; its queue has ended %s tasks a second lately', ahead,
               case when ahead = most then ' or more' end, better,
               case when better = most then ' or more' end, pace),
        jsonb_build_object('ahead', ahead, 'better', better, 'pace', pace));
end
$$;

-- Who holds a claimed task, and whether it has started.
create function nursery_queue.claim_reason(asked_id bigint) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select nursery_queue.reason(
               case when started then 'running' else 'held_ahead' end,
               format('%s %s since %s%s%s',
                      case when started then 'it runs on' else 'it is claimed, not known to have started, by'
                      end,
                      coalesce('worker ' || worker.name || ' (host ' || worker.host || ', pid '
                                   || worker.pid || ')',
                               'a worker that is not registered any more'),
                      nursery_queue.instant_text(running.started_at),
                      case when lease_left < 0 then '; the lease of that worker has run out' end,
                      case when cancel_requested_at is not null then '; it is to be cancelled'
                      end),
               jsonb_build_object('worker', worker.name, 'worker_id', running.worker_id,
                                  'host', worker.host, 'pid', worker.pid,
                                  'since', running.started_at, 'lease_left', lease_left,
                                  'cancel_requested', cancel_requested_at is not null))
      from nursery_queue.running
      left join nursery_queue.worker on worker.id = running.worker_id
     cross join lateral (
         select round((lease - extract(epoch from nursery_queue.now() - heartbeat_at))::numeric, 3)
                as lease_left) as clock
     where running.task_id = asked_id
$$;

-- Says in which state a task is, and all that keeps it there:
-- {"state": ..., "reasons": [{"code": ..., "text": ..., ...}]}, the strongest first. There is always
-- a reason. What else would hold a scheduled task, if it were due, is among them. With the owner's
-- rights, so that it takes none but that to call it.
create function nursery_queue.why(id bigint) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    set enable_seqscan = off set enable_bitmapscan = off set jit = off
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    asked nursery_queue.task;
    ended nursery_queue.finished;
    due timestamptz;
    state text;
    reasons jsonb[] := '{}';
begin
    select * into asked from nursery_queue.task where task.id = why.id;
    select * into ended from nursery_queue.finished where task_id = asked.id;
    if found then
        state := ended.state;
        reasons := reasons || nursery_queue.reason(
            'finished',
            format(case ended.state when 'cancelled' then 'it was cancelled at %s'
                                    else 'it ' || ended.state || ' at %s' end,
                   nursery_queue.instant_text(ended.finished_at)),
            jsonb_build_object('how', ended.state, 'at', ended.finished_at,
                               'error', ended.error_type || ': ' || ended.error_message));
    elsif exists (select from nursery_queue.running where task_id = asked.id) then
        state := 'running';
        reasons := reasons || nursery_queue.claim_reason(asked.id);
    elsif asked.id is not null then
        select due_at into due from nursery_queue.scheduled where task_id = asked.id;
        if found then
            state := 'scheduled';
        elsif exists (select from nursery_queue.ready
                       where queue = asked.queue and task_type = asked.task_type
                         and priority = asked.priority and key = coalesce(asked.key, '')
                         and task_id = asked.id)
              or exists (select from nursery_queue.parked
                          where task_type = asked.task_type and queue = asked.queue
                            and priority = asked.priority and task_id = asked.id) then
            state := 'ready';
        end if;
    end if;
    if state in ('scheduled', 'ready') then
        if due > nursery_queue.now() then
            reasons := reasons || nursery_queue.reason(
                'due_later', 'it is due at ' || nursery_queue.instant_text(due),
                jsonb_build_object('at', due));
        end if;
        reasons := reasons || nursery_queue.worker_reasons(asked.task_type, asked.queue)
                           || nursery_queue.queue_reasons(asked.queue, coalesce(asked.key, ''));
        if coalesce(due <= nursery_queue.now(), true) then
            reasons := array_remove(reasons || nursery_queue.turn_reason(
                asked.id, asked.queue, asked.task_type, asked.priority, coalesce(asked.key, ''),
                reasons = '{}'), null);
        end if;
    elsif reasons = '{}' then
        reasons := reasons || nursery_queue.reason(
            'unknown', format('there is no task %s: it never existed, or has been pruned', id),
            '{}');
    end if;
    return jsonb_build_object('state', state, 'reasons', to_jsonb(reasons));
end
$$;
comment on function nursery_queue.why(bigint) is 'Why a task is where it is.';
