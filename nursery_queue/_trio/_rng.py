"""Where random numbers come from unless the caller brings a generator."""

from __future__ import annotations

import contextlib
import random

from collections.abc import Generator

import attrs


@attrs.define(eq=False)
class _Source:
    rng: random.Random | None = None  # None: the operating system


_source = _Source()


def new_rng() -> random.Random:
    """Return a generator of one's own, unlike any other; a known one while `seeded`."""
    seed = None if _source.rng is None else _source.rng.getrandbits(64)
    return random.Random(seed)  # noqa: S311  # spreads timers, guards nothing


@contextlib.contextmanager
def seeded(seed: int) -> Generator[None]:
    """Make what `new_rng` returns depend on *seed* alone, and on the order of the calls."""
    outer, _source.rng = _source.rng, random.Random(seed)  # noqa: S311  # as above
    try:
        yield
    finally:
        _source.rng = outer
