-- For sessions that claim and settle: a prepared plan is kept for long, and one made while the
-- tables were empty must still do when they are large. Without jit, which the price that the
-- planner puts on an unavoidable scan would set off.
select set_config('enable_seqscan', 'off', false), set_config('jit', 'off', false)
