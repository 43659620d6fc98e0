-- Which versions of the schema are here. Walks migration_pkey.
select version, checksum from nursery_queue.migration order by version
