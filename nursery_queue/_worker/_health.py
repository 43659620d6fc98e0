"""How a worker is doing, as it says itself."""

from __future__ import annotations

import uuid

from collections.abc import Mapping, Sequence
from typing import Literal

import attrs

from nursery_queue._trio._supervisor import LoopState

from ._handler_health import HandlerHealth


@attrs.frozen(kw_only=True)
class LoopHealth:
    """How one of the worker's loops is doing."""

    state: LoopState
    restarts: int
    last_error: str | None


@attrs.frozen(kw_only=True)
class Health:
    """How a worker is doing.

    `lease_left` and `loop_lag` are in seconds; the latter is how long the event loop has been
    blocked, or took to react when it was last asked, about twice a second. `notify`: whether it
    hears of new tasks at once ("listening"), or will ("polling" says it relies on the poll alone).
    """

    loops: Mapping[str, LoopHealth]
    notify: Literal["listening", "polling"]
    lease_left: float
    loop_lag: float
    running: int  # handlers
    handlers: Sequence[HandlerHealth]  # each of them, and those that run on in abandoned threads
    held: int  # tasks, the running ones included
    claiming: bool  # False once `stop_claiming` or `stop` has been called, or it does not run
    draining: bool  # it has been stopped
    worker_id: uuid.UUID | None
