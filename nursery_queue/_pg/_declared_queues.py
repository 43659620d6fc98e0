"""Setting queues as code declares them, each by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

import psycopg

from nursery_queue._core._errors import TransientError
from nursery_queue._core._queue_changes import Declared, QueueChanges
from nursery_queue._psycopg._database_errors import is_of_the_rows

from ._rows import Row, queue_text, queues_text


# How long a declaration waits for a transaction that is changing its queue, and how long the next
# ones do, which may wait for the same one.
PATIENCE, IN_A_ROW = "1s", "50ms"
BUSY = "an open transaction is changing it"


class Do(Protocol):
    """Runs a statement by its name, in a transaction of its own."""

    def __call__(self, name: str, **params: Any) -> Awaitable[list[Row]]: ...


async def declare_queues(do: Do, declared: Mapping[str, QueueChanges]) -> Declared:
    """Do as `WorkerStore.declare_queues` says."""
    changed: list[str] = []
    left: dict[str, str] = {}
    # Nearly always none. Each in a transaction of its own: so two workers that start at once cannot
    # wait for each other, and what one of them may not set keeps no other waiting
    # (tests/pg/test_declared_queues.py).
    for (name,) in await do("undeclared_queues", declared=queues_text(declared)):
        text, patience = queue_text(declared[name]), IN_A_ROW if left else PATIENCE
        try:
            if await do("declare_queue", queue=name, declared=text, patience=patience):
                changed.append(name)
        except TransientError as exc:
            if not isinstance(exc.__cause__, psycopg.errors.LockNotAvailable):
                raise
            left[name] = BUSY
        except psycopg.Error as exc:
            if not is_of_the_rows(exc):
                raise
            left[name] = str(exc)
    return Declared(changed=tuple(changed), left=left)
