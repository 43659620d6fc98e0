"""The same seed, the same order of everything."""

from __future__ import annotations

import contextlib
import importlib
import random

from collections.abc import Generator
from typing import Any

from nursery_queue._trio._rng import seeded


@contextlib.contextmanager
def deterministic(seed: int) -> Generator[random.Random]:
    """Let *seed* decide in which order tasks run while the block lasts; yields `Random(seed)`.

    Use it around `trio.run` or inside a test, with a clock that jumps (`VirtualTime`, or trio's
    `MockClock`). Then the same seed gives the same order, in any process, for whatever goes
    through trio and `MemoryStore`; another seed most likely gives another order. Workers that
    are made in the block without `rng` draw from the seed, too. Drawing from the generator that is
    yielded changes nothing else; pass it on as `rng`, or use it for your own scenario.

    With PostgreSQL the order in which tasks run here is still the seed's, but that in which
    replies arrive is the server's: instants under `VirtualTime` are the same in every run, the
    order of what happens at one instant need not be. Nor is what threads and other processes do.

    Raises:
        RuntimeError: This version of trio does not let itself be seeded.
    """
    # The names are private to trio; hypothesis and pytest-trio depend on them as well.
    trio_run: Any = importlib.import_module("trio._core._run")
    try:
        chance, switch = trio_run._r, trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    except AttributeError as exc:
        msg = f"this version of trio cannot be seeded: {exc}; use trio 0.31 to 0.35"
        raise RuntimeError(msg) from exc
    state = chance.getstate()
    try:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
        chance.seed(seed)
        with seeded(seed):
            yield random.Random(seed)  # noqa: S311  # for tests, which want it to be known
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = switch
        chance.setstate(state)
