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
from nursery_queue._trio._batcher import Batcher

from ._transaction import Transaction


AT_ONCE = 1000  # chunks in one statement, and
BYTES_AT_ONCE = 1_000_000  # so many bytes, unless one call has more

OnRetry = Literal["continue", "restart"]
# Stores chunks, in a transaction if one is given.
Send = Callable[[StreamWrite, Transaction | None], Awaitable[None]]


@attrs.frozen(kw_only=True)
class StreamOptions:
    """The options of a stream, as `TaskContext.stream` was given them."""

    on_retry: OnRetry = "continue"
    close_on_finish: bool = True
    max_chunks: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.on_retry not in {"continue", "restart"}:
            raise ValueError(f'on_retry must be "continue" or "restart", not {self.on_retry!r}')
        if self.max_chunks is not None:
            whole(self.max_chunks, "max_chunks", minimum=1, maximum=2**63 - 1)


@attrs.frozen
class _Write:
    """The chunks of one call."""

    chunks: Sequence[Chunk] = ()
    close: bool = False


@attrs.define(eq=False)
class StreamWriter:
    """Writes to one stream of the running attempt; `TaskContext.stream` returns it.

    Writes that come while another one is under way are sent together when that has ended, in
    the order of the calls; no task runs in the background. Any task of the handler may write. A
    write that is cancelled before its turn is not stored; later, it may or may not be.
    """

    name: str = attrs.field(converter=stream_name)
    options: StreamOptions
    _fence: Fence
    _send: Send
    _batcher: Batcher[_Write, None] = attrs.field(init=False)
    _tx: Transaction | None = attrs.field(default=None, init=False)  # the last one used

    def __attrs_post_init__(self) -> None:
        self._batcher = Batcher(self._store, _together, self._unknown)

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
        await self._put(_Write([self._chunk(data)]), tx)

    async def write_many(self, pieces: Iterable[Any], *, tx: Transaction | None = None) -> None:
        """Store chunks in one statement, all or none; otherwise as `write`."""
        if isinstance(pieces, str | bytes | bytearray | memoryview):
            msg = f"write_many takes several data, not one {type(pieces).__name__}: use write"
            raise TypeError(msg)
        chunks = [self._chunk(data) for data in pieces]
        if chunks:
            await self._put(_Write(chunks), tx)
        else:
            await trio.lowlevel.checkpoint()

    async def close(self, *, tx: Transaction | None = None) -> None:
        """End the stream: its readers end when they have read what there is.

        May be called again. Not needed if `close_on_finish`; raises as `write`.
        """
        await self._put(_Write(close=True), tx)

    # -- helpers -----------------------------------------------------------------

    def _chunk(self, data: Any) -> Chunk:
        chunk = Chunk.of(data)
        if len(chunk.data) > MAX_CHUNK:
            raise PayloadTooLarge(
                f"a chunk for the stream {self.name!r} of task {self._fence.task_id} has"
                f" {len(chunk.data)} bytes, and {MAX_CHUNK} is the limit: write it in parts, or"
                " write where it can be found"
            )
        return chunk

    async def _put(self, write: _Write, tx: Transaction | None) -> None:
        if self._tx is not None and self._tx.is_open and self._tx is not tx:
            # It holds the stream until its commit, which may be waiting for this write.
            raise RuntimeError(
                f"the stream {self.name!r} has been written to in a transaction that is still"
                " open: pass that as tx, or write when it has ended"
            )
        if tx is None:
            await self._batcher.call(write)
        else:
            self._tx = tx
            await self._store([write], tx)

    async def _store(
        self, writes: Sequence[_Write], tx: Transaction | None = None
    ) -> Sequence[None]:
        statement = StreamWrite(
            fence=self._fence,
            name=self.name,
            chunks=[chunk for write in writes for chunk in write.chunks],
            restart=self.options.on_retry == "restart",
            close_on_finish=self.options.close_on_finish,
            close=writes[-1].close,
            most=self.options.max_chunks,
        )
        await self._send(statement, tx)
        return [None] * len(writes)

    def _unknown(self) -> CommitOutcomeUnknown:
        return CommitOutcomeUnknown(
            f"a write to the stream {self.name!r} of task {self._fence.task_id} was broken off:"
            " it may or may not be stored"
        )


def _together(writes: Iterable[_Write]) -> int:
    """Return how many writes can be one statement: a close is alone, so it can be repeated."""
    number = count = size = 0
    for write in writes:
        count += len(write.chunks)
        size += sum(len(chunk.data) for chunk in write.chunks)
        if number and (write.close or count > AT_ONCE or size > BYTES_AT_ONCE):
            break
        number += 1
        if write.close:
            break
    return number
