"""The supervised loops of a worker, by name."""

from __future__ import annotations

import functools
import random

from collections.abc import Mapping

import attrs
import trio

from nursery_queue._core._retry import Backoff
from nursery_queue._trio._supervisor import Loop, Service, supervise

from ._health import LoopHealth


NAMES = (
    "lease",
    "heartbeat",
    "settler",
    "declarations",
    "listener",
    "claimer",
    "scheduler",
    "maintenance",
    "reporter",
)


@attrs.define(eq=False)
class Loops:
    """Starts each loop in the nursery of its level, and restarts it there when it fails."""

    rng: random.Random
    _by_name: Mapping[str, Loop] = attrs.field(
        factory=lambda: {name: Loop(name) for name in NAMES}, init=False
    )

    def __getitem__(self, name: str) -> Loop:
        """Return what is known of a loop."""
        return self._by_name[name]

    async def start(
        self, nursery: trio.Nursery, name: str, service: Service, backoff: Backoff | None = None
    ) -> None:
        """Supervise *service* in *nursery*; return when it has said that it is ready."""
        run = functools.partial(
            supervise,
            service,
            self[name],
            backoff=backoff or Backoff(),
            rng=self.rng,
            # Any loop of ours that gets an answer proves that the store is back.
            on_back=self._answered_again,
        )
        await nursery.start(run, name=name)

    def recovered(self) -> None:
        """Restart at once what waits: the store answers heartbeats again."""
        # Only the heartbeat says so to all, or else they would wake each other in circles.
        for name in (
            "declarations",
            "listener",
            "claimer",
            "scheduler",
            "maintenance",
            "settler",
        ):
            self[name].hurry()

    def _answered_again(self) -> None:
        """Try the heartbeat at once: one of the loops is back, so the store may answer it, too."""
        # Its wait may be a third of a lease that has not so much left.
        self["heartbeat"].hurry(afresh=True)

    def health(self) -> Mapping[str, LoopHealth]:
        """Say how each of them is doing."""
        return {
            name: LoopHealth(state=loop.state, restarts=loop.restarts, last_error=loop.last_error)
            for name, loop in self._by_name.items()
        }
