-- Fails if any of the tasks that have been copied in were left out. Walks nothing.
select nursery_queue.all_stored(0, %(left_out)s::bigint)::text as answer
