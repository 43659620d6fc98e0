"""Decisions: states, models, what an outcome means, retry. No I/O, no clock, no trio."""
