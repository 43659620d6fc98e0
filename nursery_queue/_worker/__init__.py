"""The worker: one loop a file, and the nesting that is the order of its shutdown."""
