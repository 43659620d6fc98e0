-- Fails if so many of the tasks that have been copied in were left out.
select id from nursery_queue.all_stored('{}', %(left_out)s::bigint) as id
