"""The end of a process that does not end by itself."""

from __future__ import annotations

import math
import queue
import threading
import time

from collections.abc import Callable
from typing import Self

import attrs


@attrs.define(eq=False)
class Deadline:
    """Calls *late* when the time is up, in a thread: a blocked loop does not prevent it."""

    late: Callable[[], object]
    # The one that may be used in signal handlers.
    _news: queue.SimpleQueue[float | None] = attrs.field(
        factory=queue.SimpleQueue[float | None], init=False
    )
    _thread: threading.Thread | None = attrs.field(default=None, init=False)

    def within(self, seconds: float) -> None:
        """From now on there are so many seconds, whatever was said before. Never waits."""
        self._news.put(time.monotonic() + seconds)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=self._watch, name="nursery_queue deadline", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._news.put(None)
        assert self._thread is not None
        self._thread.join()

    def _watch(self) -> None:
        at: float | None = math.inf
        while at is not None:
            left = at - time.monotonic()
            try:
                at = self._news.get(timeout=None if left == math.inf else max(0.0, left))
            except queue.Empty:
                self.late()
                return
