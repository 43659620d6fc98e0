"""`enqueue`: one task, by the name of its type."""

from __future__ import annotations

from typing import Any

import click

from nursery_queue._core._debounce import Debounce
from nursery_queue._core._model import TaskRef
from nursery_queue._declare._options import LOWEST_PRIORITY
from nursery_queue._declare._task_type import TaskRequest

from ._database import Database
from ._failures import say
from ._load import load_app
from ._output import plain, write, write_json
from ._settings import setting
from ._shared_options import database, json_lines
from ._types import INSTANT, JSON, JSON_OBJECT, LABEL, integer, seconds


@click.command()
@click.argument("name")
@click.argument("params", metavar="[JSON]", type=JSON_OBJECT, default="{}")
@click.option("--queue", metavar="NAME", help="The queue.")
@click.option("--priority", type=integer(LOWEST_PRIORITY), help="Higher goes first.")
@click.option("--run-at", type=INSTANT, help="Not before it: 2030-01-31T08:00Z.")
@click.option("--run-after", type=seconds(), help="Not before so long from now.")
@click.option("--max-attempts", type=integer(1), help="Attempts in all.")
@click.option(
    "--timeout", type=seconds(positive=True, endless=True), help="Limit of one attempt, or none."
)
@click.option("--keep-for", type=seconds(), help="Keep the finished task; 0: no.")
@click.option("--dedup-key", metavar="KEY", help="Only one live task has it.")
@click.option("--key", metavar="KEY", help="What divides the queue: a customer, a host.")
@click.option(
    "--dedup-for",
    type=seconds(positive=True),
    help="The dedup key stays taken for so long, also when the task has ended.",
)
@click.option(
    "--debounce",
    type=seconds(positive=True),
    metavar="DURATION",
    help="Wait so long for the last of many calls with the dedup key.",
)
@click.option(
    "--debounce-max",
    type=seconds(positive=True),
    metavar="DURATION",
    help="But no longer than this after the first.",
)
@click.option(
    "--on-complete",
    type=LABEL,
    help="Task type that is told how the task ended: task_id, context, result.",
)
@click.option("--context", type=JSON, help="What it is told besides.")
@setting(
    "--app",
    default=None,
    metavar="APP",
    help="Where NAME may be declared: module:attribute. Else as workers have stored it.",
)
@database
@json_lines
@click.pass_context
def enqueue(
    ctx: click.Context,
    /,
    database: Database,
    name: str,
    params: dict[str, Any],
    app: str | None,
    debounce: float | None,
    debounce_max: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Store one task of type NAME and print its id.

    JSON is an object with the params by name; "-" reads it from stdin. What no option says is
    as the task type is declared: in APP, or else by the workers that have started last; of a type
    that no worker has known yet, the queue is "default" and the priority 0.

    \b
    Durations are seconds, or have a unit: 90, 200ms, 10m, 2h, 7d.
    """  # noqa: D301  # click needs the control character itself
    given: dict[str, Any] = {
        key: value
        for key, value in options.items()
        if value is not None or (key == "timeout" and _was_given(ctx, key))
    }
    if debounce_max is not None and debounce is None:
        raise click.UsageError("--debounce-max needs --debounce")
    try:
        if debounce is not None:
            given["debounce"] = Debounce(debounce, debounce_max)
        request = TaskRequest.by_name(name, params, **given)
        if app is not None:
            request = load_app(app).declared(request)
        request.to_new_task()
    except (TypeError, ValueError) as exc:
        raise click.UsageError(str(exc)) from exc
    ref = database.ask(lambda client: client.enqueue(request))
    if as_json:
        write_json(plain(ref))
    else:
        write(str(ref.id))
    if not ref.created:
        say(_found(ref, debounced=debounce is not None))


def _found(ref: TaskRef, *, debounced: bool) -> str:
    if debounced:
        return f"task {ref.id} with this dedup key was replaced, and waits anew"
    return (
        f"task {ref.id} with this dedup key is live already, or keeps it for a while:"
        f" nothing was stored"
    )


def _was_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
