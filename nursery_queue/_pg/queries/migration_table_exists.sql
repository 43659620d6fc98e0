-- Has anything ever been applied here?
select to_regclass('nursery_queue.migration') is not null
