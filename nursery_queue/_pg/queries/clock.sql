-- The store's clock.
select nursery_queue.now()
