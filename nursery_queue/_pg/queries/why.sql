-- Why tasks are where they are, in the order asked: see the function, which is bounded for each.
select nursery_queue.why(asked.id)
  from unnest(%(ids)s::bigint[]) with ordinality as asked (id, number)
 order by asked.number
