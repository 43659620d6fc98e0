"""What a worker has been asked to stop doing."""

from __future__ import annotations

import attrs
import trio


@attrs.define(eq=False)
class StopSignal:
    """The requests to stop of one run, and whether it is left by all but stubborn handlers."""

    when_idle: bool = False  # the run ends by itself when there is nothing left to do
    requested: trio.Event = attrs.field(factory=trio.Event, init=False)
    no_claims: trio.Event = attrs.field(factory=trio.Event, init=False)
    # All that is left are handlers that ignore their cancellation.
    abandoned: trio.Event = attrs.field(factory=trio.Event, init=False)

    def stop_claiming(self) -> None:
        """Claim nothing more."""
        self.no_claims.set()

    def stop(self) -> None:
        """Claim nothing more, and end."""
        self.no_claims.set()
        self.requested.set()
