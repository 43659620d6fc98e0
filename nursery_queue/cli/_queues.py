"""`queues`: how queues are set, and setting them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import click

from nursery_queue._client._client import Client
from nursery_queue._core._model import QueueStatus

from ._database import Database
from ._failures import say
from ._output import on_terminal, plain, write_json, write_rows
from ._overview import limit_of, open_or_paused, unset_queue
from ._shared_options import database, json_lines
from ._types import LABEL, integer


_COLUMNS = ("queue", "state", "#limit", "#scheduled", "#ready", "#running", "notify")

_name = click.argument("name", type=LABEL)
_names = click.argument("names", metavar="NAME...", nargs=-1, required=True, type=LABEL)


@click.group()
def queues() -> None:
    """Look at queues, pause them, limit them."""


@queues.command("list")
@database
@json_lines
def list_(database: Database, as_json: bool) -> None:
    """List the queues that have live tasks, or have been paused, limited or kept from notifying.

    Without a terminal: name, whether it is paused, limit (empty: none), scheduled, ready and
    running tasks, whether enqueues wake the workers, separated by tabs, one queue a line.
    """
    if found := database.ask(Client.queues):
        _show(found, as_json=as_json)
    elif on_terminal() and not as_json:
        say("no queues")


@queues.command()
@_names
@database
@json_lines
def pause(database: Database, names: Sequence[str], as_json: bool) -> None:
    """Let nothing of these queues start, and print each one as it is now.

    What runs is not touched. Tasks can be enqueued all the same.
    """
    _set(database, names, Client.pause, as_json=as_json)


@queues.command()
@_names
@database
@json_lines
def resume(database: Database, names: Sequence[str], as_json: bool) -> None:
    """Let tasks of these queues start again, at once, and print each one as it is now."""
    _set(database, names, Client.resume, as_json=as_json)


@queues.command()
@_name
@click.argument("limit", metavar="N|none", type=integer(0, endless=True))
@database
@json_lines
def limit(database: Database, name: str, limit: int | None, as_json: bool) -> None:
    """Let at most N tasks of a queue run over all workers, and print it as it is now.

    What runs is not touched: with a lower limit than before, the surplus runs to its end.
    0 lets nothing start; "none" takes the limit away.
    """

    def ask(client: Client, name: str) -> Awaitable[None]:
        return client.configure_queue(name, max_running=limit)

    _set(database, [name], ask, as_json=as_json)


@queues.command()
@_name
@click.argument("switch", metavar="on|off", type=click.Choice(["on", "off"]))
@database
@json_lines
def notify(database: Database, name: str, switch: str, as_json: bool) -> None:
    """Have enqueues to a queue wake the workers, or not, and print it as it is now.

    With "off" its commits need not wait for each other's notifications, and the workers find
    its tasks when they poll: within 5 seconds, unless they were given a --poll-interval.
    """

    def ask(client: Client, name: str) -> Awaitable[None]:
        return client.configure_queue(name, notify=switch == "on")

    _set(database, [name], ask, as_json=as_json)


def _set(
    database: Database,
    names: Iterable[str],
    ask: Callable[[Client, str], Awaitable[object]],
    *,
    as_json: bool,
) -> None:
    """Do something to each queue, then show them."""
    wanted = list(dict.fromkeys(names))

    async def change(client: Client) -> Sequence[QueueStatus]:
        for name in wanted:
            await ask(client, name)
        return await client.queues()

    found = {queue.name: queue for queue in database.ask(change)}
    _show([found.get(name) or unset_queue(name) for name in wanted], as_json=as_json)


def _show(found: Sequence[QueueStatus], *, as_json: bool) -> None:
    if as_json:
        for queue in found:
            write_json(plain(queue))
    elif on_terminal():
        write_rows(_COLUMNS, [_short_line(queue) for queue in found])
    else:
        write_rows((), [list(plain(queue).values()) for queue in found])


def _short_line(queue: QueueStatus) -> Sequence[object]:
    counts = (count or "·" for count in (queue.scheduled, queue.ready, queue.running))
    return queue.name, open_or_paused(queue), limit_of(queue), *counts, _on_off(queue.notify)


def _on_off(switch: bool) -> str:
    return "on" if switch else "off"
