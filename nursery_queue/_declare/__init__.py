"""What users declare: apps, task types, their options. Knows no database."""
