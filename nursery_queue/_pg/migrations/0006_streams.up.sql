-- Streams: chunks that handlers write while they run, for any number of readers.

create table nursery_queue.stream (
    id              bigint generated always as identity primary key,
    task_id         bigint not null,
    name            text not null check (length(name) between 1 and 200),
    -- The attempt that has written last.
    epoch           integer not null,
    -- How many chunks there have been; a restart has hidden the ones before `first`.
    length          bigint not null default 0,
    first           bigint not null default 0,
    restarts        integer not null default 0,
    -- It is closed as long as the task is finished: nothing is to be noted when that ends.
    close_on_finish boolean not null default true,
    closed_at       timestamptz,
    closed_epoch    integer,
    last_write      timestamptz,
    unique (task_id, name)
-- Rewritten with every write: room for the next version on the same page.
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
comment on table nursery_queue.stream is 'Streams of tasks; leave with the task row.';

create table nursery_queue.chunk (
    stream_id bigint not null,
    seq       bigint not null,
    kind      "char" not null check (kind in ('b', 't', 'j')), -- bytes, text, JSON
    data      bytea not null,
    primary key (stream_id, seq)
);
comment on table nursery_queue.chunk is
    'What was written to streams: seq without gaps, in the order of the commits.';

-- Deletes the streams of tasks that are deleted. Each table has a statement of its own: so it sees
-- the chunks written since the statement that calls this began.
create function nursery_queue.forget_streams(ids bigint[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
    set plan_cache_mode = force_generic_plan -- to plan it takes longer than to run it
as $$
declare
    streams bigint[];
begin
    with gone as (
        delete from nursery_queue.stream where task_id = any(ids) returning id
    )
    select array(select id from gone) into streams;
    if streams <> '{}' then
        delete from nursery_queue.chunk where stream_id = any(streams);
    end if;
end
$$;

-- Stores chunks of an attempt at the end of its stream, all or none. Answers what became of them:
-- 'stored', 'ignored' (an earlier attempt has closed the stream, and this one goes on with it),
-- 'stale' (the claim is not that attempt's any more), 'closed' (it has closed the stream itself) or
-- 'full' (there would be more than `most`).
create function nursery_queue.write_stream(
    task_id bigint, epoch integer, name text, kinds "char"[], pieces bytea[],
    restart boolean default false, close_on_finish boolean default true,
    close boolean default false, most bigint default null
) returns text
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
    set plan_cache_mode = force_generic_plan -- to plan it takes longer than to run it
as $$
#variable_conflict use_column
declare
    target nursery_queue.stream;
    anew boolean;
begin
    -- Held until the commit: no other transaction settles the attempt before, but it can be
    -- cancelled.
    perform from nursery_queue.running
      where running.task_id = write_stream.task_id and running.epoch = write_stream.epoch
        for key share;
    if not found then
        return 'stale';
    end if;
    -- The lock on its row gives out the numbers: so they are in the order of the commits.
    loop
        select * into target from nursery_queue.stream
         where stream.task_id = write_stream.task_id and stream.name = write_stream.name
           for no key update;
        exit when found;
        insert into nursery_queue.stream (task_id, name, epoch, close_on_finish)
        values (write_stream.task_id, write_stream.name, write_stream.epoch,
                write_stream.close_on_finish)
            on conflict do nothing;
    end loop;
    anew := restart and target.epoch <> write_stream.epoch;
    if target.closed_at is not null and not anew then
        return case when target.closed_epoch <> write_stream.epoch then 'ignored'
                    when kinds = '{}' then 'stored' -- closed twice is closed
                    else 'closed' end;
    end if;
    if anew then
        target.first := target.length;
        target.restarts := target.restarts + 1;
    end if;
    if target.length - target.first + cardinality(kinds) > most then
        return 'full';
    end if;
    if anew then
        delete from nursery_queue.chunk where stream_id = target.id;
    end if;
    insert into nursery_queue.chunk (stream_id, seq, kind, data)
    select target.id, target.length + place - 1, kind, data
      from unnest(kinds, pieces) with ordinality as given (kind, data, place);
    update nursery_queue.stream
       set epoch = write_stream.epoch,
           length = target.length + cardinality(kinds),
           first = target.first,
           restarts = target.restarts,
           close_on_finish = write_stream.close_on_finish,
           closed_at = case when write_stream.close then nursery_queue.now() end,
           closed_epoch = case when write_stream.close then write_stream.epoch end,
           last_write = case when kinds = '{}' then last_write else nursery_queue.now() end
     where id = target.id;
    perform pg_notify('nursery_queue_stream', write_stream.task_id::text);
    return 'stored';
end
$$;

-- Answers many readers: where each stream stands, and what it has from an index on, at most that
-- many chunks and bytes, but at least one if there is one. No row: there is no such task. One row
-- without a chunk: nothing there yet. Indices count from `first`; below 0, from the end. Of
-- another generation than `restarts` says only the beginning is of use.
create function nursery_queue.read_streams(
    task_ids bigint[], names text[], starts bigint[], generations integer[], chunks integer,
    bytes integer
) returns table (place integer, start bigint, length bigint, restarts integer, closed boolean,
                 last_write timestamptz, kind text, data bytea)
language plpgsql stable set search_path = pg_catalog, pg_temp
    set enable_seqscan = off set enable_bitmapscan = off
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    -- All is looked up one by one: a join may be planned as a walk through everything (offset 0).
    return query
    select asked.place::integer, begins.at, coalesce(found.length, 0), coalesce(found.restarts, 0),
           found.closed_at is not null
               or coalesce(found.close_on_finish, true)
                  and (select true from nursery_queue.finished
                        where finished.task_id = asked.task_id) is not null,
           found.last_write, page.kind::text, page.data
      from unnest(task_ids, names, starts, generations)
           with ordinality as asked (task_id, name, start, generation, place)
     cross join lateral (select from nursery_queue.task
                          where task.id = asked.task_id offset 0) as known
      left join lateral (select stream.id, stream.length - stream.first as length, stream.first,
                                stream.restarts, stream.close_on_finish, stream.closed_at,
                                stream.last_write
                           from nursery_queue.stream
                          where stream.task_id = asked.task_id and stream.name = asked.name
                         offset 0) as found on true
     cross join lateral (select case when asked.start < 0
                                     then greatest(0, coalesce(found.length, 0) + asked.start)
                                     else asked.start end as at) as begins
      left join lateral (
          select near.seq, near.kind, near.data
            from (select next.seq, next.kind, next.data,
                         sum(octet_length(next.data)) over (order by next.seq) as upto
                    from (select chunk.seq, chunk.kind, chunk.data
                            from nursery_queue.chunk
                           where chunk.stream_id = found.id
                             and chunk.seq >= found.first + begins.at
                             and (begins.at = 0
                                  or coalesce(asked.generation, found.restarts) = found.restarts)
                           order by chunk.seq
                           limit chunks) as next) as near
           -- As many as fit, and one that does not.
           where near.upto - octet_length(near.data) < bytes) as page on true
     order by asked.place, page.seq;
end
$$;
