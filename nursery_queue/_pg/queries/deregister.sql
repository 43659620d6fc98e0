-- Forgets a worker that leaves. Claims that it still holds are swept as lost.
delete from nursery_queue.worker where id = %(id)s::uuid
