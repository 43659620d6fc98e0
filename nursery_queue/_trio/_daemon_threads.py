"""Threads for `loop.run_in_executor(None, ...)` that never keep the process from ending."""

from __future__ import annotations

import os
import threading

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

import attrs
import trio


P = ParamSpec("P")
R = TypeVar("R")

MOST = min(32, (os.cpu_count() or 1) + 4)  # as many as asyncio's own default has


@attrs.define(eq=False)
class DaemonThreads(Executor):
    """Runs functions in trio's cached threads, at most *limit* at once, the others in order.

    `ThreadPoolExecutor` would have the interpreter wait, when it ends, for threads that a
    handler which was cancelled has left behind.
    """

    limit: int = MOST
    _threads: int = attrs.field(default=0, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _waiting: deque[tuple[Future[Any], Callable[[], Any]]] = attrs.field(
        factory=deque[tuple[Future[Any], Callable[[], Any]]], init=False
    )
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have *fn* called in a thread."""
        future: Future[R] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the asyncio loop has ended: it starts no more threads")
            self._waiting.append((future, lambda: fn(*args, **kwargs)))
            if self._threads == self.limit:
                return future
            self._threads += 1
        trio.lowlevel.start_thread_soon(self._work, lambda _: None, "asyncio")
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more. Never waits; what has been taken is done all the same."""
        del wait
        with self._lock:
            self._closed = True
            dropped = list(self._waiting) if cancel_futures else []
            if cancel_futures:
                self._waiting.clear()
        for future, _ in dropped:
            future.cancel()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                future, call = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as exc:  # noqa: BLE001  # it is raised where it is awaited
                future.set_exception(exc)
            else:
                future.set_result(result)
            del future, call
