-- Where migrations are noted. Several statements, so not prepared.
do $$
begin
    -- Not `if not exists`: that wants the right to create even where nothing is created.
    if to_regnamespace('nursery_queue') is null then
        create schema nursery_queue;
    end if;
end
$$;
create table if not exists nursery_queue.migration (
    version    integer primary key,
    name       text not null,
    checksum   text not null,
    applied_at timestamptz not null default now()
);
