-- Stores chunks of an attempt at the end of one of its streams, or says why not.
select nursery_queue.write_stream(
    %(task_id)s::bigint, %(epoch)s::int, %(name)s::text, %(kinds)s::"char"[], %(pieces)s::bytea[],
    %(restart)s::boolean, %(close_on_finish)s::boolean, %(close)s::boolean, %(most)s::bigint)
