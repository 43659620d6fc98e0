"""Whose something on the shared asyncio loop is: by the context it began in, or its traceback."""

from __future__ import annotations

import asyncio

from contextvars import ContextVar
from types import FrameType, TracebackType


# The async generators that were begun in this context, by id; None: they are not kept account of.
begun_here: ContextVar[set[int] | None] = ContextVar("nursery_queue_begun_here", default=None)

# The signals for which handlers were added in this context; None: they stay until the loop ends.
signals_here: ContextVar[set[int] | None] = ContextVar("nursery_queue_signals_here", default=None)


def handle_in(traceback: TracebackType | None) -> asyncio.Handle | None:
    """Return the handle whose callback raised."""
    while traceback is not None:
        frame: FrameType = traceback.tb_frame
        if frame.f_code is asyncio.Handle._run.__code__:
            handle: asyncio.Handle = frame.f_locals["self"]
            return handle
        traceback = traceback.tb_next
    return None
