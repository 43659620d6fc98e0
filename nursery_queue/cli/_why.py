"""`why`: what keeps tasks where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from nursery_queue._client._client import Client
from nursery_queue._core._reasons import Why

from ._database import Database
from ._failures import CLEAN, PROBLEM, say
from ._output import on_terminal, write, write_fields, write_json, write_rows
from ._shared_options import database, ids, json_lines


@click.command()
@ids
@database
@json_lines
def why(database: Database, ids: Sequence[int], as_json: bool) -> int:
    """Say why tasks are where they are.

    Each reason that keeps a task there, the strongest first: remove them all, and it starts.
    Without a terminal: id, state, code and text, separated by tabs, one reason a line. With
    --json one object a task: id, state and reasons, each with its code, its text and data.

    Exits with 1 if there is no task of one of the ids.
    """

    async def ask(client: Client) -> list[Why]:
        return [await client.why(task_id) for task_id in ids]

    code = CLEAN
    for task_id, found in zip(ids, database.ask(ask), strict=True):
        if found.state is None:
            code = PROBLEM
        if as_json:
            write_json({"id": task_id, "state": found.state, "reasons": reasons_of(found)})
        elif found.state is None:
            say(f"Error: {found}")
        elif on_terminal():
            write(f"task {task_id}: {found.state}")
            write_fields({f"  {each.code}": each.text for each in found.reasons})
        else:
            write_rows((), [(task_id, found.state, r.code, r.text) for r in found.reasons])
    return code


def reasons_of(found: Why) -> list[dict[str, Any]]:
    """Return the reasons as JSON has them: each with its data beside its code and text."""
    return [{"code": each.code, "text": each.text, **each.details} for each in found.reasons]
