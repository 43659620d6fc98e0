-- The first statements of a migration's transaction, whatever the role or the database has as
-- default: no time limit but the caller's ends it, and nothing is bound to objects of the same name
-- in other schemas. Several statements, so not prepared.
set local search_path = pg_catalog, pg_temp;
set local lock_timeout = 0;
set local statement_timeout = 0;
set local idle_in_transaction_session_timeout = 0;
set local check_function_bodies = on;
set local standard_conforming_strings = on;
do $$
begin
    if current_setting('transaction_timeout', true) is not null then -- PostgreSQL 17
        perform set_config('transaction_timeout', '0', true);
    end if;
end
$$;
