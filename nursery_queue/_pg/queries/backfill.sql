-- Stores tasks for ticks of a schedule that have had none, or counts them; null: there is no such
-- schedule. Walks schedule_pkey and tick_pkey.
select nursery_queue.backfill(%(name)s::text, %(ticks)s::timestamptz[], %(dry_run)s::boolean)
