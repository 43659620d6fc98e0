"""What has to end before something that it runs on is closed, and who may close that."""

from __future__ import annotations

import contextlib

from collections.abc import Callable, Generator
from contextvars import ContextVar

import attrs
import trio

from nursery_queue._core._errors import Closed


_lent: ContextVar[Lifetime | None] = ContextVar("nursery_queue_lent", default=None)

REFUSAL = (
    "this client belongs to the worker that runs this handler: do not close it, and use it without"
    " `async with`; whoever opened it closes it"
)


@attrs.define(eq=False)
class Lifetime:
    """The workers that run on one client.

    Closed under a worker, a client would leave it alive and useless; closed by a handler, all the
    others would go with it.
    """

    _runs: dict[trio.Event, Callable[[], float]] = attrs.field(
        factory=dict[trio.Event, Callable[[], float]], init=False
    )

    @contextlib.contextmanager
    def used(self, stop: Callable[[], float]) -> Generator[None]:
        """Run on the client while the block lasts; raise `Closed` if it ended for its close.

        *stop* asks the block to end, and returns within how many seconds it will.
        """
        stopped = False

        def asked() -> float:
            nonlocal stopped
            stopped = True
            return stop()

        self._runs[over := trio.Event()] = asked
        try:
            yield
        finally:
            del self._runs[over]
            over.set()
        if stopped:
            raise Closed("the client of this worker was closed while it ran: stop the worker first")

    def lend(self) -> None:
        """Keep code in this context, and in copies of it, from closing the client."""
        _lent.set(self)

    def check_owner(self) -> None:
        """Raise `RuntimeError` where the client is only lent."""
        if _lent.get() is self:
            raise RuntimeError(REFUSAL)

    async def end(self) -> None:
        """Stop what runs, and wait for it as long as it said; shielded."""
        runs = dict(self._runs)
        seconds = max([stop() for stop in runs.values()], default=0.0)
        with trio.move_on_after(seconds, shield=True):
            for over in runs:
                await over.wait()
