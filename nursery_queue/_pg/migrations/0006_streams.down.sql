-- Takes streams away, with all that was written to them.
drop function nursery_queue.write_stream(bigint, integer, text, "char"[], bytea[], boolean,
                                         boolean, boolean, bigint);
drop function nursery_queue.read_streams(bigint[], text[], bigint[], integer[], integer, integer);
drop function nursery_queue.forget_streams(bigint[]);
drop table nursery_queue.chunk;
drop table nursery_queue.stream;
