-- For sessions that claim and settle, or for one transaction: tables that were empty when they
-- were last analysed, or when a statement was prepared, must do when they are large. What is
-- wanted is always the walk along an index in its order; no scan of everything, no bitmap to be
-- sorted, and no jit, which the price that the planner puts on a scan it cannot avoid would set
-- off. Names are those of the server, whatever the role's search_path has, and the time limits are
-- ours, not the role's: a claim or a heartbeat that it cut off would be as if the server were away.
select pg_catalog.set_config(name, value, %(once)s::boolean)
  from (values ('enable_seqscan', 'off'),
               ('enable_bitmapscan', 'off'),
               ('enable_indexscan', 'on'),
               ('enable_indexonlyscan', 'on'),
               ('jit', 'off'),
               ('search_path', 'pg_catalog, pg_temp'),
               ('statement_timeout', '0'),
               ('lock_timeout', '0'),
               ('idle_in_transaction_session_timeout', '0'),
               ('idle_session_timeout', '0'),
               ('transaction_timeout', '0')) as ours (name, value)
 where pg_catalog.current_setting(name, true) is not null -- some came with a later PostgreSQL
