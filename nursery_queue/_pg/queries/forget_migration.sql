-- Notes that a migration has been undone. Walks migration_pkey.
delete from nursery_queue.migration where version = %(version)s::int
