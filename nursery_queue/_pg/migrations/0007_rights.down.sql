-- All who may use the schema may call its functions, as it is by default.
grant execute on all functions in schema nursery_queue to public;
