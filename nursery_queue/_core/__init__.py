"""Decisions: states, models, the meaning of an outcome, retry. No I/O, no clock, no trio."""
