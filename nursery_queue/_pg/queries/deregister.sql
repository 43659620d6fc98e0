-- Forgets a worker that leaves. What it still holds, if anything, is swept as lost.
delete from nursery_queue.worker where id = %(id)s::uuid
