"""Notices, from outside, when the event loop stands still."""

from __future__ import annotations

import contextlib
import threading
import time

from collections.abc import Callable, Generator

import attrs
import trio


@attrs.frozen
class Silence:
    """How long the loop has been silent, in seconds, and whether the process ran meanwhile."""

    seconds: float
    alone: bool  # False: so was the whole process, or something held Python's global lock


@attrs.define(eq=False, kw_only=True)
class LagWatch:
    """Asks the loop for a sign from a thread, twice in *limit* seconds, on the real clock.

    When there is none for *limit* seconds it calls *stuck*, and when the loop is back *back*
    with how many seconds it took: both in the thread, once each.
    """

    limit: float
    stuck: Callable[[Silence], None]
    back: Callable[[float], None]
    _lag: float = attrs.field(default=0.0, init=False)
    _asked: float | None = attrs.field(default=None, init=False)  # None: nothing is unanswered
    _answered: threading.Event = attrs.field(factory=threading.Event, init=False)
    _ended: threading.Event = attrs.field(factory=threading.Event, init=False)

    @property
    def lag(self) -> float:
        """Seconds that the loop has been silent, or took to answer when it was last asked."""
        asked = self._asked
        return self._lag if asked is None else time.monotonic() - asked

    @contextlib.contextmanager
    def watching(self) -> Generator[None]:
        """Watch the loop of the calling task while the block lasts."""
        token = trio.lowlevel.current_trio_token()
        # A daemon, so that whatever ends this process need not wait for it.
        thread = threading.Thread(
            target=self._watch, args=[token], name="nursery_queue watchdog", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._answered.set()
            thread.join()

    def _watch(self, token: trio.lowlevel.TrioToken) -> None:
        while True:
            due, used = time.monotonic() + self.limit / 2, time.process_time()
            if self._ended.wait(self.limit / 2):
                return
            with contextlib.suppress(trio.RunFinishedError):
                self._ask(token, due, used)

    def _ask(self, token: trio.lowlevel.TrioToken, due: float, used: float) -> None:
        """Wait for an answer, counted from when it was *due* that we asked."""
        self._answered.clear()
        if self._ended.is_set():
            return  # what was to wake us may just have been cleared
        self._asked = due
        late = time.monotonic() - due >= self.limit
        if late:  # then tell before the loop runs on: what kept it has only just let go of us
            self._tell(due, used)
        token.run_sync_soon(self._answer, due)
        if not late:
            if self._answered.wait(due + self.limit - time.monotonic()):
                return
            self._tell(due, used)
        self._answered.wait()
        self.back(time.monotonic() - due)

    def _tell(self, due: float, used: float) -> None:
        seconds = time.monotonic() - due
        overslept = seconds > 1.5 * self.limit
        idle = time.process_time() - used < seconds / 10
        self.stuck(Silence(seconds, alone=not (overslept and idle)))

    def _answer(self, due: float) -> None:
        self._lag, self._asked = time.monotonic() - due, None
        self._answered.set()
