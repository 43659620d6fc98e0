-- Keeps sessions that claim and settle, or one transaction, to plans that walk an index in its
-- order: a plan made when the tables were empty, or last analysed empty, must do when they are
-- large (tests/pg/test_plans.py). No scan of everything, no bitmap to be sorted, and no jit, which
-- the price of a scan that the planner cannot avoid would set off. Each statement is planned once:
-- with some statistics the server would plan it at every call, which takes as long as to run it.
-- Names are the server's, whatever the role's search_path, and the time limits are ours, not the
-- role's: a claim or a heartbeat that the role's limit cut off would look as if the server were
-- away.
select pg_catalog.set_config(name, value, %(once)s::boolean)
  from (values ('enable_seqscan', 'off'),
               ('enable_bitmapscan', 'off'),
               ('enable_indexscan', 'on'),
               ('enable_indexonlyscan', 'on'),
               ('jit', 'off'),
               ('plan_cache_mode', 'force_generic_plan'),
               ('search_path', 'pg_catalog, pg_temp'),
               ('statement_timeout', '0'),
               ('lock_timeout', '0'),
               ('idle_in_transaction_session_timeout', '0'),
               ('idle_session_timeout', '0'),
               ('transaction_timeout', '0')) as ours (name, value)
 where pg_catalog.current_setting(name, true) is not null -- some came with a later PostgreSQL
