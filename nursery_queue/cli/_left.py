"""What a worker that was to end when idle leaves in the table, and why it could not do it."""

from __future__ import annotations

import logging

from collections.abc import Container, Sequence

import trio

from nursery_queue._client import Client
from nursery_queue._connect._admin import DatabaseError
from nursery_queue._core._error_text import one_line
from nursery_queue._core._errors import NurseryQueueError
from nursery_queue._core._model import QueueStatus

from ._overview import held_back_by


log = logging.getLogger("nursery_queue.cli")

PATIENCE = 5.0  # seconds for the answer; the work is done, and nobody waits longer to hear it


async def tell_what_is_left(client: Client, served: Container[str] | None, where: str) -> None:
    """Log one line about the ready tasks in the queues *served*; None: all queues.

    Without such tasks there is no line. An answer that fails or does not come is logged as
    that: the work is done all the same.
    """
    trouble = f"no answer within {PATIENCE:g} s"
    with trio.move_on_after(PATIENCE):
        try:
            queues = await client.queues()
        except (NurseryQueueError, DatabaseError) as exc:
            trouble = one_line(str(exc))
        else:
            left = [each for each in queues if each.ready and (not served or each.name in served)]
            if left:
                log.warning("left %s", _in_words(left, where))
            return
    log.warning("which tasks are left could not be found out: %s", trouble)


def _in_words(left: Sequence[QueueStatus], where: str) -> str:
    total = sum(each.ready for each in left)
    return f"{total} ready task{'' if total == 1 else 's'}: " + "; ".join(
        f"{each.ready} of queue {each.name}, {_reason(each, where)}" for each in left
    )


def _reason(queue: QueueStatus, where: str) -> str:
    return held_back_by(queue) or f"of task types that {where} does not know, or new"
