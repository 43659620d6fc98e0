"""`MemoryStore`: tasks in this process, for tests and simulations."""
