"""Writing and reading streams through a store."""

from __future__ import annotations

from typing import Any

import attrs

from nursery_queue._core._model import Fence
from nursery_queue._core._streams import Chunk, StreamPage, StreamRequest, StreamWrite
from nursery_queue._store import Store


NAME = "tokens"


async def write(store: Store, fence: Fence, *pieces: Any, **options: Any) -> None:
    await store.write_stream(a_write(fence, *pieces, **options))


def a_write(fence: Fence, *pieces: Any, **options: Any) -> StreamWrite:
    usual = StreamWrite(fence=fence, name=NAME, chunks=[Chunk.of(data) for data in pieces])
    return attrs.evolve(usual, **options)


async def read(store: Store, task_id: int, **asked: Any) -> StreamPage:
    usual = StreamRequest(task_id=task_id, name=NAME)
    (page,) = await store.read_streams([attrs.evolve(usual, **asked)])
    assert page is not None
    return page


def values(page: StreamPage) -> list[Any]:
    return [chunk.value for chunk in page.chunks]
