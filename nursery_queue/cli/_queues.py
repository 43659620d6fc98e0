"""`queues`: how queues are set, and setting them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import attrs
import click

from click.core import ParameterSource

from nursery_queue._client._client import Client
from nursery_queue._core._model import QueueStatus

from ._database import Database
from ._failures import say
from ._output import on_terminal, plain, write_json, write_rows
from ._overview import Limits, limit_cells, limits_of, open_or_paused, unset_queue
from ._shared_options import database, json_lines, one_name, some_names
from ._types import LIMIT, RATE


_RATE = "COUNT/SECONDS[+BURST]|none"


@click.group()
def queues() -> None:
    """Look at queues, pause them, limit them."""


@queues.command("list")
@database
@json_lines
def list_(database: Database, as_json: bool) -> None:
    """List the queues that have live tasks, or have been paused, limited or kept from notifying.

    Without a terminal: name, whether it is paused, limit (empty: none), scheduled, ready and
    running tasks, whether enqueues wake the workers, limit per key, rate and rate per key,
    separated by tabs, one queue a line.
    """
    if found := database.ask(Client.queues):
        _show(found, as_json=as_json)
    elif on_terminal() and not as_json:
        say("no queues")


@queues.command()
@some_names
@database
@json_lines
def pause(database: Database, names: Sequence[str], as_json: bool) -> None:
    """Let nothing of these queues start, and print each one as it is now.

    What runs is not touched. Tasks can be enqueued all the same.
    """
    _set(database, names, Client.pause, as_json=as_json)


@queues.command()
@some_names
@database
@json_lines
def resume(database: Database, names: Sequence[str], as_json: bool) -> None:
    """Let tasks of these queues start again, at once, and print each one as it is now."""
    _set(database, names, Client.resume, as_json=as_json)


@queues.command()
@one_name
@click.argument("limit", metavar="[N|none]", type=LIMIT, required=False)
@click.option("--max-running", metavar="N|none", type=LIMIT, help="The same as N alone.")
@click.option("--max-running-per-key", metavar="N|none", type=LIMIT, help="Of one key.")
@click.option("--rate", metavar=_RATE, type=RATE, help="So many starts in so much time.")
@click.option("--rate-per-key", metavar=_RATE, type=RATE, help="Of one key.")
@database
@json_lines
@click.pass_context
def limit(
    ctx: click.Context, /, database: Database, name: str, as_json: bool, **given: Any
) -> None:
    """Limit how many tasks of a queue run, or start, over all workers; print it as it is now.

    What is not given stays as it is, and all that is given is set at once. N: at most so many run
    at a time; 0 lets nothing start. A rate such as 1000/60 lets at most 1000 start in any 60
    seconds, retries included; with 1000/60+20, 20 more may start early after a quiet time. "none"
    takes a limit away. What runs is not touched: with a lower limit than before, the surplus runs
    to its end.
    """
    changes = {
        "max_running" if key == "limit" else key: value
        for key, value in given.items()
        if _is_given(ctx, key)
    }
    if not changes:
        raise click.UsageError(
            "what is to be limited? Give N, --max-running, --max-running-per-key, --rate or"
            " --rate-per-key, each with none to take a limit away"
        )
    if {"limit", "max_running"} <= {key for key in given if _is_given(ctx, key)}:
        raise click.UsageError("N and --max-running are the same: give one of them")

    def ask(client: Client, name: str) -> Awaitable[None]:
        return client.configure_queue(name, **changes)

    _set(database, [name], ask, as_json=as_json)


@queues.command()
@one_name
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


def _is_given(ctx: click.Context, key: str) -> bool:
    return ctx.get_parameter_source(key) is ParameterSource.COMMANDLINE


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
        limits = limits_of(found)
        write_rows(
            ["queue", "state", *limits, "#scheduled", "#ready", "#running", "notify"],
            [_short_line(queue, limits) for queue in found],
        )
    else:
        write_rows((), [list(attrs.asdict(queue, recurse=False).values()) for queue in found])


def _short_line(queue: QueueStatus, limits: Limits) -> Sequence[object]:
    cells = limit_cells(queue, limits)
    counts = (count or "·" for count in (queue.scheduled, queue.ready, queue.running))
    return queue.name, open_or_paused(queue), *cells, *counts, _on_off(queue.notify)


def _on_off(switch: bool) -> str:
    return "on" if switch else "off"
