-- Sets what our own verbs rely on, for a session or for one transaction, whatever the role or the
-- database has as default: a statement that has waited for another transaction sees its changes, a
-- null within an array is a null, and what psycopg reads, instants and floats, is as it is stored
-- (tests/pg/test_isolation.py).
select pg_catalog.set_config('default_transaction_isolation', 'read committed', %(once)s::boolean),
       pg_catalog.set_config('array_nulls', 'on', %(once)s::boolean),
       pg_catalog.set_config('DateStyle', 'ISO', %(once)s::boolean),
       pg_catalog.set_config('extra_float_digits', '1', %(once)s::boolean)
