"""What an attempt, or a task of an application, holds of a pool of connections."""

from __future__ import annotations

import contextlib
import math

from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import cast

import attrs
import trio


# One is made for each attempt: `dict[object, int]()` takes five times as long as `dict()`.
_none = cast("Callable[[], dict[object, int]]", dict)


@attrs.define(eq=False)
class ConnectionUse:
    """The transactions that are open, and the calls that wait for a connection.

    An attempt has one for all its tasks and threads, which inherit it with their context.
    """

    in_attempt: bool = False
    # By pool: a handler may use other databases as well.
    open: dict[object, int] = attrs.field(factory=_none, init=False)
    # When a call was last cancelled while it waited for a connection; on trio's clock.
    gave_up_at: float = attrs.field(default=-math.inf, init=False)
    # Statements that are being cancelled, and BEGINs, COMMITs and ROLLBACKs: none of them can be
    # given up at once, so a server that is silent keeps a handler that has been cancelled.
    unanswered: int = attrs.field(default=0, init=False)


# None: the context is no attempt's, and no transaction of it is open.
connection_use: ContextVar[ConnectionUse | None] = ContextVar("connection_use", default=None)


@contextlib.contextmanager
def awaiting_answer() -> Generator[None]:
    """Note for the attempt, if any, that it waits for the server and cannot be cancelled."""
    use = connection_use.get()
    if use is not None:
        use.unanswered += 1
    try:
        yield
    finally:
        if use is not None:
            use.unanswered -= 1


@contextlib.contextmanager
def noting_cancellation() -> Generator[None]:
    """Note for the attempt when it was cancelled while it waited for a connection, if it was."""
    already = trio.current_effective_deadline() <= trio.current_time()
    try:
        yield
    except trio.Cancelled:
        if not already and (use := connection_use.get()) is not None:
            use.gave_up_at = trio.current_time()
        raise
