"""Writing to a stream of the task that a handler is running."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Literal

import attrs
import trio

from nursery_queue._core._checks import whole
from nursery_queue._core._errors import CommitOutcomeUnknown, PayloadTooLarge
from nursery_queue._core._model import Fence
from nursery_queue._core._streams import MAX_CHUNK, Chunk, StreamWrite, stream_name

from ._transaction import Transaction


AT_ONCE = 1000  # chunks in one statement, and
BYTES_AT_ONCE = 1_000_000  # so many bytes, unless one call has more
GRACE = 2.0  # seconds to send what others wait for, once whoever sends it is cancelled

OnRetry = Literal["continue", "restart"]
# Stores chunks, in a transaction if one is given.
Send = Callable[[StreamWrite, Transaction | None], Awaitable[None]]


@attrs.frozen(kw_only=True)
class StreamOptions:
    """What a handler has said of a stream."""

    on_retry: OnRetry = "continue"
    close_on_finish: bool = True
    max_chunks: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.on_retry not in {"continue", "restart"}:
            msg = f'on_retry must be "continue" or "restart", not {self.on_retry!r}'
            raise ValueError(msg)
        if self.max_chunks is not None:
            whole(self.max_chunks, "max_chunks", minimum=1, maximum=2**63 - 1)


@attrs.define(eq=False)
class _Call:
    """What one call has to have stored."""

    chunks: Sequence[Chunk] = ()
    close: bool = False
    woken: trio.Event = attrs.field(factory=trio.Event)
    answered: bool = False
    error: Exception | None = None


@attrs.define(eq=False)
class StreamWriter:
    """Writes to one stream of the running attempt; `TaskContext.stream` returns it.

    What comes while a write is under way is sent together when that has ended, in the order
    of the calls; nobody runs in the background. Any task of the handler may write. A write
    that is cancelled before its turn is not stored; later, it may or may not be.
    """

    name: str = attrs.field(converter=stream_name)
    options: StreamOptions
    _fence: Fence
    _send: Send
    # Like a set, but in the order of their coming.
    _waiting: dict[_Call, None] = attrs.field(factory=dict[_Call, None], init=False)
    _sending: bool = attrs.field(default=False, init=False)
    _tx: Transaction | None = attrs.field(default=None, init=False)  # the last one used

    async def write(self, data: Any, *, tx: Transaction | None = None) -> None:
        """Store one chunk; when this returns, it is stored and readers see it.

        Args:
            data: Bytes, a string, or what can be written as JSON: readers get back the same.
            tx: `ctx.tx`, or one of `ctx.transaction()`: then it is stored with its commit.

        Raises:
            StaleClaim: The attempt no longer holds its task; nothing was stored.
            Closed: This attempt has closed the stream.
            StreamFull: It would have more than `max_chunks`; nothing was stored.
            PayloadTooLarge: The chunk has more than 1,000,000 bytes.
            ValueError: *data* cannot be written as JSON.
            TransientError: The database cannot be reached; nothing was stored.
            CommitOutcomeUnknown: The answer was lost; it may or may not be stored.
        """
        await self._put(_Call([self._chunk(data)]), tx)

    async def write_many(self, pieces: Iterable[Any], *, tx: Transaction | None = None) -> None:
        """Store chunks in one statement, all or none; otherwise as `write`."""
        if isinstance(pieces, str | bytes | bytearray | memoryview):
            msg = f"write_many takes several data, not one {type(pieces).__name__}: use write"
            raise TypeError(msg)
        chunks = [self._chunk(data) for data in pieces]
        if chunks:
            await self._put(_Call(chunks), tx)
        else:
            await trio.lowlevel.checkpoint()

    async def close(self, *, tx: Transaction | None = None) -> None:
        """End the stream: its readers end when they have read what there is.

        May be called again. Not needed if `close_on_finish`; raises as `write`.
        """
        await self._put(_Call(close=True), tx)

    # -- helpers -----------------------------------------------------------------

    def _chunk(self, data: Any) -> Chunk:
        chunk = Chunk.of(data)
        if len(chunk.data) > MAX_CHUNK:
            msg = (
                f"a chunk for the stream {self.name!r} of task {self._fence.task_id} has"
                f" {len(chunk.data)} bytes, and {MAX_CHUNK} is the limit: write it in parts, or"
                " write where it can be found"
            )
            raise PayloadTooLarge(msg)
        return chunk

    async def _put(self, call: _Call, tx: Transaction | None) -> None:
        if self._tx is not None and self._tx.is_open and self._tx is not tx:
            # It holds the stream until its commit, which may be waiting for us.
            msg = (
                f"the stream {self.name!r} has been written to in a transaction that is still"
                " open: pass that as tx, or write when it has ended"
            )
            raise RuntimeError(msg)
        if tx is not None:
            self._tx = tx
            await self._send(self._as_write([call]), tx)
            return
        self._waiting[call] = None
        try:
            while not call.answered:
                if self._sending:
                    await call.woken.wait()
                    call.woken = trio.Event()
                else:
                    await self._send_next(call)
        finally:
            self._waiting.pop(call, None)
            if not self._sending:
                self._pass_on()
        if call.error is not None:
            raise call.error

    async def _send_next(self, mine: _Call) -> None:
        """Send what is first in line, whether it is ours or not."""
        batch = self._next_batch()
        for call in batch:
            del self._waiting[call]
        self._sending = True
        try:
            if batch == [mine]:
                await self._send(self._as_write(batch), None)
                mine.answered = True
            else:
                await self._send_for_all(batch)
        finally:
            self._sending = False

    def _pass_on(self) -> None:
        """Have one of those who are left send. Whoever leaves sees to it, whatever the reason.

        So it does not matter if the heir is on its way out, too: it leaves after us.
        """
        if (heir := next(iter(self._waiting), None)) is not None:
            heir.woken.set()

    def _next_batch(self) -> list[_Call]:
        """Return calls that can be one statement: a close is alone, so it can be repeated."""
        batch: list[_Call] = []
        count = size = 0
        for call in self._waiting:
            count += len(call.chunks)
            size += sum(len(chunk.data) for chunk in call.chunks)
            if batch and (call.close or count > AT_ONCE or size > BYTES_AT_ONCE):
                break
            batch.append(call)
            if call.close:
                break
        return batch

    async def _send_for_all(self, batch: Sequence[_Call]) -> None:
        """Send what others wait for, too: it goes on for a while when we are cancelled."""
        error: Exception | None = CommitOutcomeUnknown(
            f"a write to the stream {self.name!r} of task {self._fence.task_id} was broken off:"
            " it may or may not be stored"
        )

        async def limit() -> None:
            try:
                await trio.sleep_forever()
            finally:
                scope.deadline = trio.current_time() + GRACE

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope(shield=True)
            nursery.start_soon(limit)
            try:
                with scope:
                    await self._send(self._as_write(batch), None)
                    error = None
            except Exception as exc:  # noqa: BLE001  # raised to each of them
                error = exc
            finally:
                for call in batch:
                    call.answered, call.error = True, error
                    call.woken.set()
            nursery.cancel_scope.cancel("it has been answered")

    def _as_write(self, calls: Sequence[_Call]) -> StreamWrite:
        return StreamWrite(
            fence=self._fence,
            name=self.name,
            chunks=[chunk for call in calls for chunk in call.chunks],
            restart=self.options.on_retry == "restart",
            close_on_finish=self.options.close_on_finish,
            close=calls[-1].close,
            most=self.options.max_chunks,
        )
