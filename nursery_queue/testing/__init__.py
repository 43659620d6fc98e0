"""Tools for testing applications that use nursery_queue."""

from __future__ import annotations

from nursery_queue._memory._memory_store import MemoryStore as MemoryStore
from nursery_queue._trio._clock import ClockStuck as ClockStuck

from ._deterministic import deterministic as deterministic
from ._perform import perform as perform, performing as performing
from ._virtual_time import VirtualTime as VirtualTime
