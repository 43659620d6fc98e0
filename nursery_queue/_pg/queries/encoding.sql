-- In which encoding is all text of this database?
select pg_catalog.current_setting('server_encoding')
