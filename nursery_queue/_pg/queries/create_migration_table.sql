-- Where migrations are noted. Several statements, so not prepared.
do $$
begin
    -- The client says so too, of tables that have got here otherwise (tests/pg/test_encodings.py).
    if pg_catalog.current_setting('server_encoding') operator(pg_catalog.<>) 'UTF8' then
        raise feature_not_supported using message = pg_catalog.format(
            'the database %I has the encoding %s, and tasks need UTF8: use a database in UTF8',
            pg_catalog.current_database(), pg_catalog.current_setting('server_encoding'));
    end if;
    -- Not `if not exists`: that wants the right to create even where nothing is created.
    if to_regnamespace('nursery_queue') is null then
        create schema nursery_queue;
    end if;
    -- Everything in the schema gets our owner and our rights: no other program's tables may.
    if exists (select from pg_catalog.pg_class
                where relnamespace = 'nursery_queue'::pg_catalog.regnamespace
                  and relname not in ('migration', 'migration_pkey'))
        or exists (select from pg_catalog.pg_proc
                    where pronamespace = 'nursery_queue'::pg_catalog.regnamespace) then
        raise duplicate_schema using message =
            'there is something in the schema nursery_queue already, and the tables of the queue'
            ' need one of their own';
    end if;
end
$$;
create table if not exists nursery_queue.migration (
    version    integer primary key,
    name       text not null,
    checksum   text not null,
    applied_at timestamptz not null default now()
);
