"""How a worker process notices that its parent is gone, even by SIGKILL: a pipe ends.

The parent holds the only writing end and never writes. The kernel closes it with the parent,
however that ends, on every POSIX system.
"""

from __future__ import annotations

import contextlib
import os
import threading

from collections.abc import Callable
from typing import Self

import attrs

from ._failures import PROBLEM
from ._worker_process import WorkerSpec


@attrs.define(eq=False)
class ParentPipe:
    """A child's ends of the pipes to its parent."""

    number: int  # of the child
    closed_by_parent: int  # a file descriptor that is at its end when the parent has ended
    ready: int  # one to write a byte to, once this process is connected
    _force: Callable[[], None] | None = attrs.field(default=None, init=False)
    _gone: bool = attrs.field(default=False, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str()` has written."""
        number, closed_by_parent, ready = map(int, text.split(":"))  # a ValueError is a usage error
        return cls(number, closed_by_parent, ready)

    def __str__(self) -> str:
        return f"{self.number}:{self.closed_by_parent}:{self.ready}"

    def watch(self) -> None:
        """End this process when its parent is gone; once a worker runs, as that is told to.

        In a thread of its own, so that a handler that blocks the loop does not keep the process.
        """
        for descriptor in (self.closed_by_parent, self.ready):
            os.set_inheritable(descriptor, False)
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()

    def attached(self, spec: WorkerSpec) -> WorkerSpec:
        """Return *spec* as one that ends with the parent, and tells it of the connection."""
        return attrs.evolve(spec, on_connected=self._on_connected, on_force=self._on_force)

    def _watch(self) -> None:
        os.read(self.closed_by_parent, 1)
        with self._lock:
            self._gone = True
            force = self._force
        if force is None:
            os._exit(PROBLEM)  # nothing has been claimed yet
        force()

    def _on_connected(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self.ready, b".")
        os.close(self.ready)

    def _on_force(self, force: Callable[[], None]) -> None:
        with self._lock:
            self._force = force
            gone = self._gone
        if gone:
            force()
