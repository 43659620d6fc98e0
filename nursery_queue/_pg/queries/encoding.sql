-- Answers the encoding of all text in this database. Walks nothing.
select pg_catalog.current_setting('server_encoding')
