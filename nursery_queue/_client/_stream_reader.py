"""Reading what tasks write to their streams, from the first chunk to the last."""

from __future__ import annotations

import datetime as dt

from collections import deque
from typing import Any, Self

import attrs
import trio

from nursery_queue._core._checks import duration
from nursery_queue._core._errors import Closed, StreamRestarted, UnknownTask
from nursery_queue._core._streams import Chunk, StreamPage, StreamRequest
from nursery_queue._store import Bell, ClientStore
from nursery_queue._trio._batcher import Batcher, question_batcher

from ._notifier import Notifier, Subscription, WakePolicy


POLL = 5.0  # seconds between polls of a stream of which no notification tells
CALM = 0.1  # seconds; notifications of chunks name their task, those of ends may not
AT_ONCE = 100  # streams in one question: a page of each has to fit into memory
FURTHEST = 2**62  # an index at which no stream has a chunk


def poll_interval(value: object) -> float:
    """Return seconds between polls; 0: none."""
    return duration(value, "stream_poll_interval")


@attrs.frozen(kw_only=True)
class StreamInfo:
    """How far a stream has come."""

    length: int  # chunks, without those that a restart has hidden
    closed: bool  # nothing will come after them, unless the task is made to go again
    restarts: int  # how often a new attempt has begun it anew
    last_write: dt.datetime | None  # None: nothing has been written


@attrs.define(eq=False)
class ClientStreams:
    """The streams of one client's tasks: makes readers, and asks for their pages together."""

    _store: ClientStore
    _notifier: Notifier
    _poll: float
    _policy: WakePolicy = attrs.field(init=False)
    _questions: Batcher[StreamRequest, StreamPage | None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        bells = frozenset({Bell.STREAM, Bell.FINISHED})
        self._policy = WakePolicy(bells, deaf=self._poll, hearing=self._poll, calm=CALM)
        self._notifier.ring_for(self._policy)
        self._questions = question_batcher(
            self._store.read_streams, what="reading streams", most=AT_ONCE
        )

    def reader(self, task_id: int, name: str, start: int, restarts: int | None) -> StreamReader:
        """Return a reader that begins at *start*; nothing happens before it reads."""
        return StreamReader(self, task_id, name, start, restarts)

    async def info(self, task_id: int, name: str) -> StreamInfo | None:
        """Say how far a stream has come; None: there is no such task."""
        asked = StreamRequest(task_id=task_id, name=name, start=FURTHEST)
        (page,) = await self._store.read_streams([asked])
        if page is None:
            return None
        return StreamInfo(
            length=page.length,
            closed=page.closed,
            restarts=page.restarts,
            last_write=page.last_write,
        )

    def close(self, why: str) -> None:
        """Raise `Closed` to all readers, which says *why*."""
        self._questions.close(why)

    # -- for readers --------------------------------------------------------------------

    def subscription(self, task_id: int) -> Subscription:
        """Subscribe to chunks of a task, and to its end."""
        return self._notifier.subscribe(task_id, self._policy)

    async def ask(self, request: StreamRequest) -> StreamPage | None:
        """Return a page, read after this call. Rides out outages."""
        return await self._questions.call(request)


@attrs.define(eq=False)
class StreamReader:
    """Yields what a task writes to one of its streams: all of it, in order, once.

    `client.read_stream()` makes one. `async for` ends when the stream is closed and everything
    has been read. A cancelled call has lost nothing: the next one goes on. For one trio task at
    a time. Holds at most a page of chunks to come: 64, and of large ones 1 MB.

    Raises:
        UnknownTask: There is no such task (any more).
        StreamRestarted: A new attempt has begun the stream anew; what has been read so far
            counts no more. Open another reader, at 0.
        Closed: The reader or its client has been closed.
    """

    _streams: ClientStreams
    task_id: int
    name: str
    _position: int
    # Generation that positions count in; None: any, as nothing has been read.
    _restarts: int | None
    _chunks: deque[Chunk] = attrs.field(factory=deque[Chunk], init=False)
    # From the first question on. None: there may be chunks that no wakeup has told of.
    _subscription: Subscription | None = attrs.field(default=None, init=False)
    _more: bool = attrs.field(default=True, init=False)  # the last page was not all
    _ended: bool = attrs.field(default=False, init=False)  # after these chunks nothing will come
    _closed: bool = attrs.field(default=False, init=False)
    _in_use: bool = attrs.field(default=False, init=False)

    @property
    def position(self) -> int:
        """Index of the chunk that comes next; below 0 until the length of the stream is known."""
        return self._position

    @property
    def restarts(self) -> int | None:
        """How often the stream had been restarted when it was read; None: that is not known yet.

        Together with `position` it says where another reader can go on.
        """
        return self._restarts

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._in_use:
            msg = "another task is reading with this reader: open one for each"
            raise trio.BusyResourceError(msg)
        self._in_use = True
        try:
            await trio.lowlevel.checkpoint()
            while not self._chunks and not self._ended:
                await self._read()
            return self._next()
        except BaseException:
            self._leave()  # the reader may not be used again
            raise
        finally:
            self._in_use = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Read no more; may be called again. A task that is reading gets `Closed`."""
        self._closed = True
        self._leave()
        await trio.lowlevel.checkpoint()

    async def _read(self) -> None:
        """Wait until there may be more, and read it, if there is."""
        self._check_open()
        if self._subscription is None:
            self._subscription, self._more = self._streams.subscription(self.task_id), True
        if not self._more:
            await self._subscription.changed()
            self._check_open()
        page = await self._streams.ask(
            StreamRequest(
                task_id=self.task_id,
                name=self.name,
                start=self._position,
                restarts=self._restarts,
            )
        )
        if page is None:
            msg = f"there is no task {self.task_id}: it never existed, or has been pruned"
            raise UnknownTask(msg)
        self._turn_to(page)

    def _turn_to(self, page: StreamPage) -> None:
        if self._restarts not in {None, page.restarts} and self._position > 0:
            raise StreamRestarted(
                f"stream {self.name!r} of task {self.task_id} has been begun anew by a later"
                f" attempt: the {self._position} chunks before count no more, read again from 0"
            )
        self._restarts, self._position = page.restarts, page.start
        self._chunks.extend(page.chunks)
        self._more = bool(page.chunks) and self._position + len(page.chunks) < page.length
        if page.closed and not self._more:
            self._ended = True
            self._leave()

    def _next(self) -> Any:
        self._check_open()
        if not self._chunks:
            raise StopAsyncIteration
        value = self._chunks[0].value
        self._chunks.popleft()
        self._position += 1
        return value

    def _leave(self) -> None:
        if (subscription := self._subscription) is not None:
            self._subscription = None
            subscription.leave()
            subscription.wake()  # another task may be waiting in it

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this reader has been closed: open another one with client.read_stream()")
