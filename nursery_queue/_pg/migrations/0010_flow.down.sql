-- Keys have no turns any more.
drop function nursery_queue.use_rates(text[], text[], text[], text[], integer[], text[],
                                      integer[], timestamptz);
drop function nursery_queue.take_turns(text[], text[], integer[], text[], integer[]);
drop function nursery_queue.share_lanes(text[], text[], integer[], text[], integer[], boolean[],
                                        integer[], integer[], integer, integer[]);
drop function nursery_queue.share_levels(text[], text[], integer[], text[], integer[], boolean[],
                                         integer[], integer[], integer, integer, integer[]);
drop function nursery_queue.share_keys(text, text, integer, text[], integer[], boolean, integer,
                                       integer, integer, integer[]);
drop function nursery_queue.find_lanes(text[], text[], integer[], integer, integer, jsonb);
drop function nursery_queue.open_lanes(text, text, integer, jsonb, integer);
drop function nursery_queue.keyed(text[], text[], text[]);
drop table nursery_queue.turn;
