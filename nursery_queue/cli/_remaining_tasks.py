"""Which tasks a worker that ends when idle leaves in the table, and why it did not run them."""

from __future__ import annotations

import logging

from collections.abc import Container, Sequence

import trio

from nursery_queue._client._client import Client
from nursery_queue._connect._admin import DatabaseError
from nursery_queue._core._error_text import one_line
from nursery_queue._core._errors import NurseryQueueError
from nursery_queue._core._model import QueueStatus

from ._overview import held_back_by


log = logging.getLogger("nursery_queue.cli")

ANSWER_TIMEOUT = 5.0  # seconds; the work is done, and the process is not kept for longer


async def log_remaining_tasks(client: Client, served: Container[str] | None, where: str) -> None:
    """Log a line about the ready tasks in the queues *served*; None: all queues.

    Another line tells of scheduled tasks, which wait for their time or their next attempt.
    Without such tasks there is no such line. An answer that fails or does not come is logged,
    and changes nothing else: the work is done.
    """
    trouble = f"no answer within {ANSWER_TIMEOUT:g} s"
    with trio.move_on_after(ANSWER_TIMEOUT):
        try:
            queues = await client.queues()
        except (NurseryQueueError, DatabaseError) as exc:
            trouble = one_line(str(exc))
        else:
            ours = [each for each in queues if not served or each.name in served]
            if ready := [each for each in ours if each.ready]:
                log.warning("left %s", _ready(ready, where))
            if later := [each for each in ours if each.scheduled]:
                log.info("left %s", _scheduled(later))
            return
    log.warning("which tasks are left could not be found out: %s", trouble)


def _ready(left: Sequence[QueueStatus], where: str) -> str:
    return f"{_tasks('ready', sum(each.ready for each in left))}: " + "; ".join(
        f"{each.ready} of queue {each.name}, {_reason(each, where)}" for each in left
    )


def _scheduled(left: Sequence[QueueStatus]) -> str:
    return f"{_tasks('scheduled', sum(each.scheduled for each in left))}: " + "; ".join(
        f"{each.scheduled} of queue {each.name}" for each in left
    )


def _tasks(state: str, count: int) -> str:
    return f"{count} {state} task{'' if count == 1 else 's'}"


def _reason(queue: QueueStatus, where: str) -> str:
    return held_back_by(queue) or f"of task types that {where} does not know, or new"
