"""Streams in memory: the rows of `MemoryStore` that are written again and again."""

from __future__ import annotations

import datetime as dt

from typing import Self

import attrs

from nursery_queue._core._streams import (
    PAGE,
    PAGE_BYTES,
    Chunk,
    StreamPage,
    StreamRequest,
    StreamWrite,
    WriteResult,
)


@attrs.define(eq=False)
class Stream:
    """The chunks of one stream, without the ones that a restart has hidden."""

    epoch: int  # of the attempt that has written last
    close_on_finish: bool
    chunks: list[Chunk] = attrs.field(factory=list[Chunk])
    restarts: int = 0
    closed_by: int | None = None  # the epoch of the attempt that has closed it
    last_write: dt.datetime | None = None

    def copy(self) -> Self:
        """Return one that can be written to without this one's changing."""
        return attrs.evolve(self, chunks=list(self.chunks))

    def write(self, asked: StreamWrite, now: dt.datetime) -> WriteResult:
        """Add chunks of the attempt that holds the task, all or none."""
        epoch, chunks = asked.fence.epoch, asked.chunks
        anew = asked.restart and self.epoch != epoch
        if self.closed_by is not None and not anew:
            if self.closed_by != epoch:
                return WriteResult.IGNORED
            return WriteResult.CLOSED if chunks else WriteResult.STORED
        kept = [] if anew else self.chunks
        if asked.most is not None and len(kept) + len(chunks) > asked.most:
            return WriteResult.FULL
        kept += chunks
        self.chunks, self.restarts, self.epoch = kept, self.restarts + anew, epoch
        self.close_on_finish = asked.close_on_finish
        self.closed_by = epoch if asked.close else None
        if chunks:
            self.last_write = now
        return WriteResult.STORED


def page(stream: Stream | None, asked: StreamRequest, *, finished: bool) -> StreamPage:
    """Return the page of a stream that a reader asks for; None: it has no write yet."""
    if stream is None:
        start = max(0, asked.start)
        return StreamPage(start=start, length=0, restarts=0, closed=finished, chunks=[])
    length = len(stream.chunks)
    start = max(0, length + asked.start) if asked.start < 0 else asked.start
    chunks: list[Chunk] = []
    if start == 0 or asked.restarts in (None, stream.restarts):
        room = PAGE_BYTES
        for chunk in stream.chunks[start : start + PAGE]:
            if room <= 0:
                break
            chunks.append(chunk)
            room -= len(chunk.data)
    return StreamPage(
        start=start,
        length=length,
        restarts=stream.restarts,
        closed=stream.closed_by is not None or (stream.close_on_finish and finished),
        chunks=chunks,
        last_write=stream.last_write,
    )
