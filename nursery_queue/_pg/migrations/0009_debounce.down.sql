-- No call can be debounced any more.
drop function nursery_queue.debounced(json);
drop function nursery_queue.replace(bigint, text, json);
drop function nursery_queue.hold(text[]);
