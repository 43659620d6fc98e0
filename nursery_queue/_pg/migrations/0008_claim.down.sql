-- No worker can claim any more.
drop function nursery_queue.claim(uuid, text[], text[], integer[], integer, integer, integer, text,
                                  text, text, integer, integer);
drop function nursery_queue.pick(text[], text[], integer[], text[], integer[]);
drop function nursery_queue.held_back(text[], text[], text[], integer[], integer, text[],
                                      integer[], boolean[], text[], integer[]);
drop function nursery_queue.left_over(text[], text[], integer[], integer[]);
drop function nursery_queue.offered(text[], text[], text[], integer[], integer, text[], integer[],
                                    text[]);
