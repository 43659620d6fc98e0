"""The verbs that a client, its transactions and async producers share, and their arguments."""

from __future__ import annotations

import abc

from collections.abc import Sequence
from typing import Any, ParamSpec, overload

from nursery_queue._core._model import NewTask, TaskRef, TaskStatus
from nursery_queue._declare._app import App
from nursery_queue._declare._task_type import TaskRequest, TaskType, as_request


P = ParamSpec("P")


class Enqueuer(abc.ABC):
    """Enqueues tasks, cancels them and says where they are: by itself or in a transaction."""

    __slots__ = ()

    @overload
    async def enqueue(
        self, task: TaskType[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskRef: ...

    @overload
    async def enqueue(self, task: TaskRequest, /) -> TaskRef: ...

    @overload
    async def enqueue(self, task: str, /, **params: Any) -> TaskRef: ...

    async def enqueue(self, task: object, /, *args: Any, **kwargs: Any) -> TaskRef:
        """Store one task and return its id; what is not said of it is as declared.

        In a transaction it is stored with the commit.

        Args:
            task: A task type, followed by the handler's arguments; or what `bind()` returned;
                or the name of a task type whose code lives elsewhere, with its params by name.
            args: The handler's positional arguments.
            kwargs: The handler's arguments by name.

        Raises:
            TypeError: The arguments do not fit the handler.
            ParamsError: An argument cannot be written as JSON.
            PayloadTooLarge: They are larger than `max_params_bytes`.
            CommitOutcomeUnknown: The answer was lost: it may or may not be stored.
        """
        (ref,) = await self.enqueue_many([as_request(task, *args, **kwargs)])
        return ref

    @abc.abstractmethod
    async def enqueue_many(self, requests: Sequence[TaskRequest]) -> list[TaskRef]:
        """Store tasks, all or none; their ids come back in order."""

    @abc.abstractmethod
    async def cancel(self, task: TaskRef | int, *, running: bool = True) -> bool:
        """Cancel a task. False: unknown, or it has ended already.

        A waiting task never starts. A running one has its scope cancelled, on whatever worker
        it runs; with *running* False it may finish, but is not tried again. In a transaction
        this takes effect with the commit.
        """

    async def status(self, task: TaskRef | int, *, payloads: bool = False) -> TaskStatus | None:
        """Say where a task is. None: it never existed, or has been pruned.

        A transaction says it as it sees it. *payloads*: with its params and its context.
        """
        (status,) = await self.status_many([task], payloads=payloads)
        return status

    @abc.abstractmethod
    async def status_many(
        self, tasks: Sequence[TaskRef | int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        """Say where tasks are, in the order asked, all at one moment; see `status`."""


def new_tasks(
    requests: Sequence[TaskRequest], max_params_bytes: int, app: App | None, *, copy: bool
) -> list[NewTask]:
    """Return what a store stores, or raise for one that cannot be, or not by *copy*.

    What is declared in *app* counts where a request was made by name.
    """
    asked = [as_request(each) for each in requests]
    if app is not None:
        asked = [app.declared(each) for each in asked]
    tasks = [each.to_new_task(max_params_bytes) for each in asked]
    for task in tasks if copy else ():
        if task.dedup_key is not None:
            raise ValueError(
                f"copy=True cannot look for tasks with the same dedup_key, and a {task.task_type}"
                f" has the dedup_key {task.dedup_key!r}: enqueue those that have one without it"
            )
    return tasks


def task_id(task: TaskRef | int) -> int:
    """Return the id of a task named either way. Raises `TypeError` for anything else."""
    return _whole(task.id if isinstance(task, TaskRef) else task)


def _whole(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"a task is named by its id or what enqueue returned, not {given!r:.100}")
    return given
