"""Idioms for trio that know no tasks: supervisor, batcher, wakeup, timeouts, signals, clock."""
