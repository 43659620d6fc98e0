"""Streams: values of the domain to parameters of statements, and rows back to values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nursery_queue._core._streams import (
    PAGE,
    PAGE_BYTES,
    Chunk,
    ChunkKind,
    StreamPage,
    StreamRequest,
    StreamWrite,
    WriteResult,
    insist_on,
)
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._cursors import BinaryArray

from ._rows import IDS, Row
from ._sql import query


_FURTHEST = 2**62  # no stream is that long, and it can be added to


async def write(conn: Connection, schema: str, asked: StreamWrite) -> None:
    """Store chunks, or raise for a refusal."""
    params = {
        "task_id": asked.fence.task_id,
        "epoch": asked.fence.epoch,
        "name": asked.name,
        "kinds": [chunk.kind.value for chunk in asked.chunks],
        "pieces": BinaryArray(chunk.data for chunk in asked.chunks),
        "restart": asked.restart,
        "close_on_finish": asked.close_on_finish,
        "close": asked.close,
        "most": asked.most,
    }
    ((result,),) = await conn.fetch(query("write_stream", schema), params)
    insist_on(WriteResult(result), asked)


def read_params(requests: Sequence[StreamRequest]) -> Mapping[str, Any]:
    """Return *requests* as one array a column; one for an id that no task has asks for none."""
    return {
        "task_ids": [one.task_id if one.task_id in IDS else None for one in requests],
        "names": [one.name for one in requests],
        "starts": [min(max(one.start, -_FURTHEST), _FURTHEST) for one in requests],
        "restarts": [one.restarts for one in requests],
        "chunks": PAGE,
        "bytes": PAGE_BYTES,
    }


def pages(rows: Iterable[Row], count: int) -> list[StreamPage | None]:
    """Read the answer of `read_streams.sql` to *count* requests."""
    found: dict[int, StreamPage] = {}
    chunks: dict[int, list[Chunk]] = {}
    for place, start, length, restarts, closed, last_write, kind, data in rows:
        if place not in found:
            chunks[place] = []
            found[place] = StreamPage(
                start=start,
                length=length,
                restarts=restarts,
                closed=closed,
                chunks=chunks[place],
                last_write=last_write,
            )
        if kind is not None:
            chunks[place].append(Chunk(ChunkKind(kind), data))
    return [found.get(place) for place in range(1, count + 1)]
