-- A page for each of many readers: where a stream stands, and what it has from an index on.
select place, start, length, restarts, closed, last_write, kind, data
  from nursery_queue.read_streams(%(task_ids)s::bigint[], %(names)s::text[], %(starts)s::bigint[],
                                  %(restarts)s::int[], %(chunks)s::int, %(bytes)s::int)
