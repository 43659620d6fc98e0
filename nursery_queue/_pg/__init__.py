"""`PostgresStore`: the statements, their rows, and the migrations of the tables."""
