-- Answers the process id of the backend, the default isolation level here, and whether this role or
-- database has a setting that pin_settings would have to set back.
select pg_catalog.pg_backend_pid(),
       pg_catalog.current_setting('default_transaction_isolation'),
       pg_catalog.current_setting('default_transaction_isolation')
           operator(pg_catalog.<>) 'read committed'
       or pg_catalog.current_setting('array_nulls') operator(pg_catalog.<>) 'on'
       or pg_catalog.current_setting('DateStyle') operator(pg_catalog.!~~) 'ISO%'
       or pg_catalog.current_setting('extra_float_digits') operator(pg_catalog.~) '^(-|0)'
