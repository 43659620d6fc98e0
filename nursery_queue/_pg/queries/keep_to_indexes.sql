-- For sessions that claim and settle, or for one transaction: tables that were empty when they
-- were last analysed, or when a statement was prepared, must do when they are large. What is
-- wanted is always the walk along an index in its order; no scan of everything, no bitmap to be
-- sorted, and no jit, which the price that the planner puts on a scan it cannot avoid would set
-- off. And whatever the server's default is, a claim that has waited for another must see what
-- that one took.
select set_config('enable_seqscan', 'off', %(once)s::boolean),
       set_config('enable_bitmapscan', 'off', %(once)s::boolean),
       set_config('jit', 'off', %(once)s::boolean),
       set_config('default_transaction_isolation', 'read committed', %(once)s::boolean)
