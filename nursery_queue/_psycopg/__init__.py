"""psycopg on trio: connections, pool, listener. Knows no tasks."""
