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
from ._worker_process import Shift


@attrs.define(eq=False)
class Lifeline:
    """A child's end of what ties it to its parent."""

    number: int
    life: int  # a file descriptor that ends with the parent
    ready: int  # one to write a byte to, once we are in
    _force: Callable[[], None] | None = attrs.field(default=None, init=False)
    _gone: bool = attrs.field(default=False, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str()` has written."""
        number, life, ready = map(int, text.split(":"))
        return cls(number, life, ready)

    def __str__(self) -> str:
        return f"{self.number}:{self.life}:{self.ready}"

    def watch(self) -> None:
        """End this process when its parent is gone; once at work, as the shift says.

        In a thread of its own, so that nobody who blocks the loop keeps us alive.
        """
        for descriptor in (self.life, self.ready):
            os.set_inheritable(descriptor, False)
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()

    def tied(self, shift: Shift) -> Shift:
        """Return *shift* as one that ends with our parent, and says when it is in."""
        return attrs.evolve(shift, entered=self._entered, on_force=self._on_force)

    def _watch(self) -> None:
        os.read(self.life, 1)
        with self._lock:
            self._gone = True
            force = self._force
        if force is None:
            os._exit(PROBLEM)  # nothing has been claimed yet
        force()

    def _entered(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self.ready, b".")
        os.close(self.ready)

    def _on_force(self, force: Callable[[], None]) -> None:
        with self._lock:
            self._force = force
            gone = self._gone
        if gone:
            force()
