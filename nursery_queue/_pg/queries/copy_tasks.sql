-- Stores tasks whose ids have been taken, as a stream; the trigger places them and rings.
copy nursery_queue.task (id, task_type, params, queue, priority, key, run_at,
                         created_at, max_attempts, backoff, timeout, keep_for, on_complete, context)
from stdin
