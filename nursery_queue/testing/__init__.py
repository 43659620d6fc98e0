"""Tools for testing applications that use nursery_queue."""

from __future__ import annotations

from nursery_queue._store._memory import MemoryStore as MemoryStore
