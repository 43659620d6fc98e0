-- Notes that a migration has been applied.
insert into nursery_queue.migration (version, name, checksum)
values (%(version)s::int, %(name)s::text, %(checksum)s::text)
