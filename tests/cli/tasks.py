"""Tasks that are stored and looked at in SQL, while a worker runs in a process of its own."""

from __future__ import annotations

import json

from pathlib import Path

from tests.support.command_line import Running, rows, until


STATES = "select state, attempt from nursery_queue.task_status order by id"
WORKERS = "select count(*) from nursery_queue.worker"


def enqueue(dsn: str, name: str, **params: object) -> None:
    rows(
        dsn,
        "insert into nursery_queue.task (task_type, params) values (%s, %s)",
        [name, json.dumps({key: str(value) for key, value in params.items()})],
    )


def in_hand(worker: Running, mark: Path, count: int = 1) -> None:
    """Wait until *count* handlers have started."""
    worker.line("ready: ")
    until(lambda: mark.exists() and len(mark.read_text().splitlines()) >= count, "a start")
