"""What producers on every connection do alike; how a call gets to the database, subclasses say."""

from __future__ import annotations

import abc

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVarTuple, overload

import attrs

from nursery_queue._client._callbacks import CallbackCounts, CallbackTally
from nursery_queue._client._enqueuer import Enqueuer
from nursery_queue._core._model import TaskRef, TaskStatus
from nursery_queue._declare._task_type import TaskRequest, TaskType, as_request

from ._committed_call import CommittedCall


P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


@attrs.define(eq=False)
class _WithCallbacks:
    """The part of a producer that is about `after`."""

    _tally: CallbackTally = attrs.field(factory=CallbackTally, init=False)

    @property
    def callbacks(self) -> CallbackCounts:
        """How many of the callbacks that this producer was given have ended, by their outcome.

        Those of a `Transaction` are counted by its client.
        """
        return self._tally.counts

    def after(self, fn: Callable[[*Ts], object], /, *args: *Ts) -> None:
        """Call *fn* once the transaction is committed, and not at all if it is rolled back.

        On Django's connection this is its `on_commit`. On a SQLAlchemy session they are called
        in order, in the thread that commits, when the transaction is over; an error is logged
        and counted, the others are called all the same. They may use the session itself, unless
        it is in a `with session.begin():`, which SQLAlchemy wants to be left first.

        On an `AsyncSession` *fn* may be async, and the callbacks run within `commit()`: they
        start in order, at most 10 at once, each for at most 30 s. On a `Transaction` this is its
        own `after`. In a session that is part of a transaction of its connection they are
        dropped, with a warning, as its `commit()` commits nothing.

        Raises:
            TypeError: *fn* cannot be called, or is async where the producer is not; or this is a
                connection of psycopg or of SQLAlchemy's Core: those do not tell when they commit.
        """
        del fn, args
        raise TypeError(_NO_HOOK)

    def _call(self, fn: Callable[..., object], args: Sequence[object]) -> CommittedCall:
        return CommittedCall.of(fn, args, self._tally)


@attrs.define(eq=False)
class Producer(_WithCallbacks, abc.ABC):
    """Enqueues tasks in the transaction of a sync connection or session; see `producer`.

    Nothing is committed here. A call that fails raises the library's own error and leaves the
    transaction as it was before the call. Where each statement commits by itself (autocommit), a
    write whose answer is lost raises `CommitOutcomeUnknown`.
    """

    @overload
    def enqueue(self, task: TaskType[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> TaskRef: ...

    @overload
    def enqueue(self, task: TaskRequest, /) -> TaskRef: ...

    @overload
    def enqueue(self, task: str, /, **params: Any) -> TaskRef: ...

    def enqueue(self, task: object, /, *args: Any, **kwargs: Any) -> TaskRef:
        """Store one task with the transaction and return its id; see `Client.enqueue`."""
        (ref,) = self.enqueue_many([as_request(task, *args, **kwargs)])
        return ref

    @abc.abstractmethod
    def enqueue_many(self, requests: Sequence[TaskRequest]) -> list[TaskRef]:
        """Store tasks with the transaction, all or none; their ids come back in order."""

    @abc.abstractmethod
    def cancel(self, task: TaskRef | int, *, running: bool = True) -> bool:
        """Cancel a task with the transaction; see `Client.cancel`."""

    def status(self, task: TaskRef | int, *, payloads: bool = False) -> TaskStatus | None:
        """Say where a task is, as the transaction sees it; see `Client.status`."""
        (status,) = self.status_many([task], payloads=payloads)
        return status

    @abc.abstractmethod
    def status_many(
        self, tasks: Sequence[TaskRef | int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        """Say where tasks are, in the order asked; see `Client.status`."""


@attrs.define(eq=False)
class AsyncProducer(_WithCallbacks, Enqueuer):
    """Enqueues tasks in the transaction of an async connection or session; see `producer`.

    Nothing is committed here. A call that fails raises the library's own error and leaves the
    transaction as it was before the call. So does one that is cancelled, except on asyncio at
    its very end: there it may have had its effect. Where each statement commits by itself
    (autocommit), a write whose answer is lost raises `CommitOutcomeUnknown`. Tasks may use one
    connection at the same time: their calls take turns.
    """


_NO_HOOK = (
    "a connection of psycopg or of SQLAlchemy's Core does not tell when its transaction is "
    "committed: do it after your commit(), or enqueue a task; a SQLAlchemy Session, Django's "
    "connection and client.transaction() do tell"
)
