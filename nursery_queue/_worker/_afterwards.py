"""What a handler has asked for with `ctx.after`: called when its success is stored."""

from __future__ import annotations

import logging

from collections.abc import Sequence

import attrs
import trio

from nursery_queue._client._callbacks import Callback, CallbackOutcome, CallbackTally, call_all
from nursery_queue._core._model import Claim


log = logging.getLogger("nursery_queue")


@attrs.define(eq=False)
class Afterwards:
    """The callbacks of a handler that has returned; `settled` says whether it is stored."""

    claim: Claim
    callbacks: Sequence[Callback]
    tally: CallbackTally
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _known: trio.Event = attrs.field(factory=trio.Event, init=False)
    _stored: bool = attrs.field(default=False, init=False)

    def settled(self, *, success: bool) -> None:
        """Hear that the success is stored, or that it never will be."""
        self._stored = success
        self._known.set()

    def cancel(self) -> None:
        """Cancel them; the time of the worker is up."""
        self._scope.cancel("the worker is shutting down")

    async def run(self) -> None:
        """Wait until the success is stored, and call them."""
        with self._scope:
            if not self._known.is_set():
                await self._wait()
            if self._stored:
                await call_all(self.callbacks, self.tally, contain=True)

    async def _wait(self) -> None:
        try:
            await self._known.wait()
        except trio.Cancelled:
            self.tally.note(CallbackOutcome.CANCELLED, len(self.callbacks))
            log.warning(
                "%s has ended and its success is not stored yet: %d callbacks are not called",
                self.claim,
                len(self.callbacks),
            )
            raise
