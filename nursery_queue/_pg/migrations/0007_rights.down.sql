-- Every role that may use the schema may call its functions, as by default.
grant execute on all functions in schema nursery_queue to public;
