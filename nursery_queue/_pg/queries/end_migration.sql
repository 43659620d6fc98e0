-- The last statement of a migration's transaction, for whatever it has made. No role may call
-- anything but the functions that the table itself, or a bare insert, calls: roles.sql grants more,
-- by name, to each kind of program. And several users may own the schema by way of one role, and
-- any of them may migrate: what one of them has made belongs to that role, as all the rest does
-- (tests/pg/test_rights.py).
do $$
declare
    thing record;
begin
    for thing in select oid::regprocedure as name
                   from pg_proc
                  where pronamespace = 'nursery_queue'::regnamespace
                    and proname not in ('now', 'is_backoff', 'is_completion', 'is_cron', 'recall',
                                        'all_stored', 'store')
                    and pg_has_role(proowner, 'usage')
                    and exists (select from aclexplode(coalesce(proacl, acldefault('f', proowner)))
                                 where grantee = 0) loop -- the public
        execute format('revoke execute on routine %s from public', thing.name);
    end loop;
    for thing in select pg_class.oid::regclass as name, nspowner::regrole as owner
                   from pg_class
                   join pg_namespace on pg_namespace.oid = relnamespace
                  where relnamespace = 'nursery_queue'::regnamespace and relkind in ('r', 'v')
                    and relowner <> nspowner
                    and pg_has_role(nspowner, 'member') and pg_has_role(relowner, 'usage') loop
        execute format('alter table %s owner to %s', thing.name, thing.owner);
    end loop;
    for thing in select pg_proc.oid::regprocedure as name, nspowner::regrole as owner
                   from pg_proc
                   join pg_namespace on pg_namespace.oid = pronamespace
                  where pronamespace = 'nursery_queue'::regnamespace and proowner <> nspowner
                    and pg_has_role(nspowner, 'member') and pg_has_role(proowner, 'usage') loop
        execute format('alter routine %s owner to %s', thing.name, thing.owner);
    end loop;
end
$$;
