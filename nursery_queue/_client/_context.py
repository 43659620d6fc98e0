"""The context of an attempt: what its handler may know and do."""

from __future__ import annotations

import contextlib
import datetime as dt
import enum

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVarTuple
from uuid import UUID

import attrs
import trio

from nursery_queue._core._model import Fence
from nursery_queue._store import Isolation

from ._after_commit import AfterCommit, AfterCommitBatch
from ._callbacks import PendingCallbacks
from ._stream_writer import OnRetry, Send, StreamOptions, StreamWriter
from ._transaction import Transaction


if TYPE_CHECKING:
    from ._client import Client


Ts = TypeVarTuple("Ts")


class CancelReason(enum.IntEnum):
    """Why an attempt was cancelled. If several apply, the greatest is recorded.

    Being cancelled is a request, and how the handler ends is the answer. If it *returns*, it has
    done its work and succeeded, whatever the reason; what it did in `ctx.tx` is committed. If it
    raises anything, `Cancelled` included, the reason is recorded as the attempt's outcome, with
    the error. `DoNotRetry`, `RetryAfter` and `Snooze` count as ever, except after CANCELLED,
    when the task does not go round again anyway. After LEASE_LOST others may have the task: no
    outcome is recorded, not even success, and the log will say that the attempt was lost.
    A handler in a thread cannot be interrupted, and has no say once it is cancelled.
    """

    SHUTDOWN = 1
    TIMED_OUT = 2
    CANCELLED = 3
    LEASE_LOST = 4

    def __str__(self) -> str:
        return self.name.lower()


@attrs.define(eq=False, kw_only=True)
class TaskContext:
    """The attempt that a handler is running as. Name it as the first parameter to get it."""

    # Tells `App` which parameter is the context, without importing this module.
    __nursery_queue_context__: ClassVar[bool] = True

    task_id: int
    task_type: str
    attempt: int  # 1 is the first; interrupted and snoozed ones are not counted
    queue: str
    params: Mapping[str, Any] = attrs.field(repr=False)
    deadline: float  # on trio's clock; math.inf: no time limit
    worker_id: UUID
    fence: Fence
    client: Client
    tick: dt.datetime | None = None  # the instant of a schedule that it stands for; in UTC
    _why: Callable[[], CancelReason | None] = attrs.field(alias="why", repr=False)
    _pending: Callable[[], PendingCallbacks] = attrs.field(alias="pending", repr=False)
    _send: Send = attrs.field(alias="send", repr=False)
    _tx: Transaction | None = attrs.field(default=None, alias="tx")
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _streams: dict[str, StreamWriter] = attrs.field(
        factory=dict[str, StreamWriter], init=False, repr=False
    )

    @property
    def cancel_reason(self) -> CancelReason | None:
        """Why the attempt has been cancelled; None: it has not been.

        It may become a greater one as long as the handler cleans up.
        """
        return self._why()

    @property
    def tx(self) -> Transaction:
        """The transaction that commits together with this attempt's success.

        Only with `@app.task(transactional=True)`. Opened at first use. Rolled back when the
        handler raises, `Cancelled` included, or no longer holds its task when it returns.
        """
        if self._tx is None:
            msg = f"declare {self.task_type} with @app.task(transactional=True) to use ctx.tx"
            raise RuntimeError(msg)
        return self._tx

    @property
    def nursery(self) -> trio.Nursery:
        """The attempt's own nursery; the attempt ends when its children have.

        Only with `@app.task(nursery=True)`.
        """
        if self._nursery is None:
            msg = f"declare {self.task_type} with @app.task(nursery=True) to use ctx.nursery"
            raise RuntimeError(msg)
        return self._nursery

    def transaction(
        self,
        *,
        after: AfterCommit | AfterCommitBatch | None = None,
        isolation: Isolation | None = None,
    ) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction of its own, which commits when the block ends well.

        See `Client.transaction`, also for *after* and *isolation*.
        """
        return self.client.transaction(after=after, isolation=isolation)

    def after(self, fn: Callable[[*Ts], object], /, *args: *Ts) -> None:
        """Have *fn* called once this attempt's success is stored, and only then.

        Not if it fails, is timed out or cancelled, or has lost its task. It is best effort: a
        worker that dies in between does not call it, and no other one will. Otherwise it is as
        `Transaction.after`: 10 run at once, in the order of the calls, each for at most 30 s;
        they run in trio, wherever the handler does. The attempt keeps its place among those
        that run at once, and a worker that is stopped treats them as handlers: they have
        *grace* seconds, then they are cancelled. `ctx.tx.after` does the same, unless it is
        in a savepoint that is rolled back.

        Raises:
            Closed: The attempt has ended.
        """
        self._pending().add(fn, args)

    def stream(
        self,
        name: str = "default",
        *,
        on_retry: OnRetry = "continue",
        close_on_finish: bool = True,
        max_chunks: int | None = None,
    ) -> StreamWriter:
        """Return what writes to a stream of this task; the same one for the same name.

        A reader gets each chunk once, in order, now or later, as long as the task is
        kept: see `Client.read_stream`. Nothing is stored before the first write.

        Args:
            name: The stream's own among those of the task: 1 to 200 printable characters.
            on_retry: What the first write or close of a new attempt does with what earlier
                ones have written: "continue" goes on behind it, unless one of them has closed
                the stream, then what is written now is ignored; "restart" hides it.
            close_on_finish: The stream is closed when the task has ended, however it did.
            max_chunks: As many it may have; None: any number.

        Raises:
            ValueError: This attempt has opened it with other options.
        """
        options = StreamOptions(
            on_retry=on_retry, close_on_finish=close_on_finish, max_chunks=max_chunks
        )
        if (writer := self._streams.get(name)) is None:
            writer = self._streams[name] = StreamWriter(name, options, self.fence, self._send)
        if writer.options != options:
            raise ValueError(
                f"this attempt has opened the stream {name!r} with other options: {writer.options}"
            )
        return writer

    @contextlib.asynccontextmanager
    async def own_nursery(self) -> AsyncGenerator[None]:
        """Open `nursery` for the time of the block; called by the executor."""
        async with trio.open_nursery() as self._nursery:
            yield
