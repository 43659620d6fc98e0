"""Tools for testing applications that use nursery_queue."""

from __future__ import annotations

from typing import TYPE_CHECKING as _TYPE_CHECKING

from nursery_queue._first_use import import_on_first_use as _import_on_first_use


# pytest imports this package in every run, for its plugin, whether the tools are used or not.
if _TYPE_CHECKING:
    from nursery_queue._memory._memory_store import MemoryStore as MemoryStore
    from nursery_queue._trio._clock import ClockStuck as ClockStuck

    from ._deterministic import deterministic as deterministic
    from ._perform import perform as perform, performing as performing
    from ._virtual_time import VirtualTime as VirtualTime


_import_on_first_use(
    __name__,
    {
        "nursery_queue._memory._memory_store": "MemoryStore",
        "nursery_queue._trio._clock": "ClockStuck",
        "._deterministic": "deterministic",
        "._perform": "perform performing",
        "._virtual_time": "VirtualTime",
    },
)
