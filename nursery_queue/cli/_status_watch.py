"""`status --watch`: the same question again and again, through outages, until Ctrl-C."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import sys

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from nursery_queue._core._errors import TransientError
from nursery_queue._trio._signals import Escalation, obey

from ._database import Database
from ._failures import PROBLEM, say
from ._output import on_terminal, terminal
from ._overview import Overview, overview


if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live


SHOW_CURSOR = b"\x1b[?25h"  # what is drawn over hides it


class StatusDisplay(Protocol):
    """Where a person or a program sees the overview."""

    def show(self, seen: Overview) -> None:
        """Show this overview."""
        ...

    def away(self, why: str) -> None:
        """Tell that there was no answer; called again for as long as there is none."""
        ...


async def watch(database: Database, every: float, display: StatusDisplay) -> None:
    """Ask every so many seconds until SIGINT or SIGTERM.

    Only the first question must be answered: later outages are told, and ridden out.
    """
    async with trio.open_nursery() as nursery:
        await nursery.start(end_with_a_signal, nursery.cancel_scope)
        async with database.client() as client:
            while True:
                try:
                    seen = await overview(client)
                except TransientError as exc:
                    display.away(str(database.unreachable(exc)))
                else:
                    display.show(seen)
                await trio.sleep(every)


async def end_with_a_signal(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    """Cancel *scope* at the first SIGINT or SIGTERM; the second ends the process, with a 1.

    The second does so at once, also while the output waits to be read. Where
    the end is already under way, as with the last of a task, the first has nothing to cancel.
    """
    escalation = Escalation([lambda signum: scope.cancel(signum.name)], _exit)
    await obey(escalation, [signal.SIGINT, signal.SIGTERM], lasting=True, task_status=task_status)


def _exit(_signum: signal.Signals) -> None:
    if on_terminal():
        os.write(sys.stdout.fileno(), SHOW_CURSOR)
    os._exit(PROBLEM)


@attrs.define(eq=False)
class Log:
    """Writes one block after the other; outages are told on stderr, once each."""

    write: Callable[[Overview], None]
    _away: bool = attrs.field(default=False, init=False)

    def show(self, seen: Overview) -> None:
        """Write a block."""
        if self._away:
            say("the database answers again")
        self._away = False
        self.write(seen)

    def away(self, why: str) -> None:
        """Say so, the first time."""
        if not self._away:
            say(f"{why}\ntrying again until it answers")
        self._away = True


@attrs.define(eq=False)
class Screen:
    """Draws over what it has drawn; an outage is told below the last that was known."""

    render: Callable[[Overview], RenderableType]
    _live: Live
    _last: Overview | None = attrs.field(default=None, init=False)
    _asked: dt.datetime | None = attrs.field(default=None, init=False)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, render: Callable[[Overview], RenderableType]) -> Generator[Screen]:
        """Draw while the block lasts; the last picture stays."""
        from rich.live import Live

        with Live(console=terminal(), auto_refresh=False) as live:
            yield cls(render, live)

    def show(self, seen: Overview) -> None:
        """Draw anew."""
        self._last, self._asked = seen, dt.datetime.now().astimezone()
        self._draw()

    def away(self, why: str) -> None:
        """Draw the last that was known, and why there is nothing newer."""
        self._draw(why)

    def _draw(self, trouble: str = "") -> None:
        from rich.console import Group
        from rich.text import Text

        at = "" if self._asked is None else f"as of {self._asked:%H:%M:%S}"
        self._live.update(
            Group(
                *([] if self._last is None else [self.render(self._last), Text()]),
                *([Text(trouble, style="red")] if trouble else []),
                Text(f"{at}  Ctrl-C ends", style="dim"),
            ),
            refresh=True,
        )
