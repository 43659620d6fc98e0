"""Streams of chunks that a task writes: the values that cross the store boundary."""

from __future__ import annotations

import datetime as dt
import enum
import json

from collections.abc import Sequence
from typing import Any, Self, cast

import attrs

from ._errors import Closed, StaleClaim, StreamFull
from ._json_text import to_text
from ._model import Fence


PAGE = 64  # chunks of one stream in one answer
PAGE_BYTES = 1_000_000  # of one stream in one answer, once there is a chunk in it
MAX_CHUNK = 1_000_000  # bytes
LONGEST_NAME = 200  # characters


def stream_name(name: object) -> str:
    """Return *name*, if a stream can be called that, or raise naming it."""
    if not isinstance(name, str):
        raise TypeError(f"a stream is named by a string, not {name!r}")
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        msg = f"the name of a stream must be 1 to {LONGEST_NAME} printable characters, not {name!r}"
        raise ValueError(msg)
    return name


class ChunkKind(enum.StrEnum):
    """The type of a chunk, so that a reader gets back the value that was written."""

    BYTES = "b"
    TEXT = "t"
    JSON = "j"


@attrs.frozen
class Chunk:
    """One thing that was written to a stream."""

    kind: ChunkKind
    data: bytes

    @classmethod
    def of(cls, data: Any) -> Self:
        """Return *data* as it is stored. Raises `ValueError` if it cannot be."""
        if isinstance(data, bytes | bytearray | memoryview):
            return cls(ChunkKind.BYTES, bytes(cast("bytes", data)))
        if isinstance(data, str):
            return cls(ChunkKind.TEXT, data.encode())
        return cls(ChunkKind.JSON, to_text(data, "data").encode())

    @property
    def value(self) -> Any:
        """The value that was written."""
        match self.kind:
            case ChunkKind.BYTES:
                return self.data
            case ChunkKind.TEXT:
                return self.data.decode()
            case ChunkKind.JSON:
                return json.loads(self.data)


@attrs.frozen(kw_only=True)
class StreamWrite:
    """Chunks to be stored for a claim, all or none, and perhaps the end of the stream.

    The first write of an attempt says whether the chunks of earlier attempts stay: *restart* hides
    them. *most*: so many chunks the stream may have, hidden ones not counted.
    """

    fence: Fence
    name: str
    chunks: Sequence[Chunk] = ()
    restart: bool = False
    close_on_finish: bool = True  # it is closed as long as the task is finished
    close: bool = False  # after these chunks
    most: int | None = None


class WriteResult(enum.StrEnum):
    """How a write ended."""

    STORED = "stored"
    IGNORED = "ignored"  # an earlier attempt has closed the stream, and this one goes on with it
    STALE = "stale"  # the claim is not held any more
    CLOSED = "closed"  # this attempt has closed the stream
    FULL = "full"  # it would have too many chunks


def insist_on(result: WriteResult, write: StreamWrite) -> None:
    """Raise for a write that was refused."""
    stream = f"stream {write.name!r} of task {write.fence.task_id}"
    match result:
        case WriteResult.STORED | WriteResult.IGNORED:
            return
        case WriteResult.STALE:
            msg = f"nothing was written to the {stream}: {write.fence} is not ours any more"
            raise StaleClaim(msg)
        case WriteResult.CLOSED:
            raise Closed(f"the {stream} has been closed by this attempt: write before you close")
        case WriteResult.FULL:
            raise StreamFull(
                f"the {stream} may have {write.most} chunks and would have more: write fewer, or"
                " raise max_chunks; nothing of this write was stored"
            )


@attrs.frozen(kw_only=True)
class StreamRequest:
    """A reader's question: which chunks are there from *start* on?

    Indices count the chunks that are not hidden: 0 is the first chunk since the last restart.
    *start* below 0 counts from the end. *restarts*: the generation that *start* counts in (None:
    the present one); chunks of any other generation are returned only if *start* is 0.
    """

    task_id: int
    name: str
    start: int = 0
    restarts: int | None = None


@attrs.frozen(kw_only=True)
class StreamPage:
    """The answer: at most `PAGE` chunks and `PAGE_BYTES`, at least one if there is one.

    A stream without a write has length 0 and was restarted 0 times.
    """

    start: int  # index of the first of the chunks, or of the one that is waited for
    length: int  # chunks there are, hidden ones not counted
    restarts: int
    closed: bool  # nothing comes after *length*, unless the task is made to go again
    chunks: Sequence[Chunk] = ()
    last_write: dt.datetime | None = None
