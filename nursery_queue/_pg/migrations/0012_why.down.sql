-- Nobody can be asked any more.
drop function nursery_queue.why(bigint);
drop function nursery_queue.claim_reason(bigint);
drop function nursery_queue.turn_reason(bigint, text, text, integer, text, boolean);
drop function nursery_queue.pace(text, bigint);
drop function nursery_queue.queue_reasons(text, text);
drop function nursery_queue.rate_reason(text, text, integer, double precision, integer);
drop function nursery_queue.worker_reasons(text, text);
drop function nursery_queue.holders(text, text, text);
drop function nursery_queue.nearest(text, text[]);
drop function nursery_queue.common_start(text, text);
drop function nursery_queue.reason(text, text, jsonb);
drop function nursery_queue.instant_text(timestamptz);
drop function nursery_queue.is_alive(nursery_queue.worker);
