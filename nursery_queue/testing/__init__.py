"""Tools for testing applications that use nursery_queue."""

from __future__ import annotations

from nursery_queue._runtime._timekeeper import ClockStuck as ClockStuck
from nursery_queue._store._memory import MemoryStore as MemoryStore

from ._deterministic import deterministic as deterministic
from ._perform import perform as perform, performing as performing
from ._virtual_time import VirtualTime as VirtualTime
