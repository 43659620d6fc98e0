"""Tells the log of ready tasks that no living worker takes."""

from __future__ import annotations

import logging

import attrs

from nursery_queue._core._error_text import one_line
from nursery_queue._core._errors import DatabaseRefused, TransientError
from nursery_queue._store import WorkerStore
from nursery_queue._trio._timeouts import answered_within


log = logging.getLogger("nursery_queue")

MOST = 20  # queues, and task types, that one look names
TOLD = 1000  # names, after which no others are told
TIMEOUT = 10.0  # seconds for the answer
QUEUE = "queue %s has ready tasks, and no worker that is alive serves it"
TASK_TYPE = "task type %s has ready tasks, and no worker that is alive knows it"


@attrs.define(eq=False)
class UnattendedTasks:
    """Warns, once each, of queues that no worker serves and of task types that none knows.

    Each worker does so in its own log. Without an answer it does without.
    """

    store: WorkerStore
    _told: set[tuple[str, str]] = attrs.field(factory=set[tuple[str, str]], init=False)

    async def look(self) -> None:
        """Look once, and tell what has not been told yet."""
        try:
            with answered_within(TIMEOUT, "looking for tasks that no worker takes"):
                found = await self.store.unattended(most=MOST)
        except (TransientError, DatabaseRefused) as exc:
            log.info("tasks that no worker takes are not looked for: %s", exc)
            return
        self._tell(QUEUE, found.queues)
        self._tell(TASK_TYPE, found.task_types)

    def _tell(self, words: str, names: tuple[str, ...]) -> None:
        for name in names:
            if (words, name) not in self._told and len(self._told) < TOLD:
                self._told.add((words, name))
                log.warning(words, one_line(name))
