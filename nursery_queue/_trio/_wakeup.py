"""The doorbell."""

from __future__ import annotations

import attrs
import trio


@attrs.define(eq=False)
class Wakeup:
    """A doorbell: however often it rang while you were busy, you answer once.

    Level-triggered, coalescing, without data. For one waiter.
    """

    _event: trio.Event = attrs.field(factory=trio.Event, init=False)

    def ring(self) -> None:
        """Wake the waiter, now or when it next waits. Never blocks."""
        self._event.set()

    async def wait(self) -> None:
        """Wait for a ring. Cancelled, it leaves the ring for the next wait."""
        await self._event.wait()
        # No checkpoint between waking up and replacing the event, so no ring falls between.
        self._event = trio.Event()
