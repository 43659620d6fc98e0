"""How long to wait for an answer."""

from __future__ import annotations

import contextlib

from collections.abc import Generator

import trio

from nursery_queue._core._errors import TransientError


@contextlib.contextmanager
def answered_within(seconds: float, what: str, *, shield: bool = False) -> Generator[None]:
    """Cancel the block after so many seconds and raise `TransientError`: *what* it was."""
    with trio.move_on_after(seconds, shield=shield) as limit:
        yield
    if limit.cancelled_caught:
        raise TransientError(f"{what} got no answer within {seconds:g} s")
