"""Anything in any order: every reader gets a run without gaps, from its start to the close."""

from __future__ import annotations

import contextlib

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

from hypothesis import HealthCheck, event, given, settings, strategies as st

import nursery_queue as nq

from nursery_queue._core._streams import StreamRequest
from nursery_queue.testing import VirtualTime
from tests.streams.authors import Audience, Clerk, author, clerk, listeners, nothing_left


STARTS = [0, 0, 1, 5, 63, 64, 65, 100, -1, -5, -70]

writes = st.tuples(
    st.just("write"), st.sampled_from("ab"), st.sampled_from([1, 1, 2, 63, 64, 65]), st.booleans()
)
steps = st.one_of(
    writes,
    writes,
    st.tuples(st.just("read"), st.sampled_from(STARTS)),
    st.tuples(st.just("begin")),
    st.tuples(st.just("commit")),
    st.tuples(st.just("roll_back")),
    st.tuples(st.just("notify"), st.sampled_from(["", "x", "-3", "5", "mine"])),
    st.tuples(st.just("kill")),
    st.tuples(st.just("pass_time"), st.sampled_from([0.001, 0.2, 1.0, 4.9, 12.0])),
    st.tuples(st.just("interrupt"), st.integers(0, 10)),
    st.tuples(st.just("close"), st.booleans()),
)


@attrs.define(eq=False)
class Scene:
    """A stream, two who write to it, and those who read it."""

    dsn: str
    client: nq.Client
    nursery: trio.Nursery
    a: Clerk
    b: Clerk
    numbers: int = 0
    readers: list[tuple[int, nq.StreamReader, Audience]] = attrs.field(
        factory=list[tuple[int, nq.StreamReader, Audience]]
    )
    scopes: list[trio.CancelScope] = attrs.field(factory=list[trio.CancelScope])
    _open: contextlib.AsyncExitStack | None = None
    _waiting: int = 0

    async def write(self, who: str, count: int, silently: bool) -> None:
        pieces = [f"{who}{self.numbers + place}" for place in range(count)]
        self.numbers += count
        if who == "a":
            await self.a.write(*pieces, silently=silently)
        elif self._open is None:
            await self.b.write(*pieces, silently=silently)
        elif not self._waiting:
            self._waiting += 1
            self.nursery.start_soon(self._write_later, pieces, silently)

    async def _write_later(self, pieces: list[str], silently: bool) -> None:
        await self.b.write(*pieces, silently=silently)  # may have to wait for the other's end
        self._waiting -= 1

    async def begin(self) -> None:
        if self._open is None:
            self._open = contextlib.AsyncExitStack()
            await self._open.enter_async_context(self.a.conn.transaction())

    async def commit(self) -> None:
        if self._open is not None:
            await self._open.aclose()
            await self._settled()

    async def roll_back(self) -> None:
        if self._open is not None:
            with contextlib.suppress(ZeroDivisionError):
                async with self._open:
                    raise ZeroDivisionError
            await self._settled()

    async def _settled(self) -> None:
        self._open = None
        while self._waiting:  # noqa: ASYNC110  # in virtual time
            await trio.sleep(0.001)

    async def notify(self, payload: str) -> None:
        if not self._waiting:
            task_id = str(self.b.fence.task_id)
            await self.b.notify(task_id if payload == "mine" else payload)

    async def kill(self) -> None:
        for pid in await listeners(self.dsn):
            if not self._waiting:
                await self.b.conn.fetch(b"select pg_terminate_backend(%s)", [pid])

    async def pass_time(self, seconds: float) -> None:
        # While one writer's statement waits for the other's transaction to end, time cannot pass.
        if not self._waiting:
            await trio.sleep(seconds)

    async def read(self, start: int) -> None:
        reader = self.client.read_stream(self.a.fence.task_id, start=start)
        self.readers.append((start, reader, Audience()))
        self.scopes.append(trio.CancelScope())
        self.nursery.start_soon(self._read, len(self.scopes) - 1)

    async def _read(self, place: int) -> None:
        _, reader, audience = self.readers[place]
        while not audience.ended:
            with self.scopes[place]:
                await audience.read(reader)

    async def interrupt(self, which: int) -> None:
        """Cancel a reader, which then goes on."""
        if self.scopes:
            place = which % len(self.scopes)
            scope, self.scopes[place] = self.scopes[place], trio.CancelScope()
            scope.cancel()

    async def close(self, silently: bool) -> None:
        await self.a.write(close=True, silently=silently)

    async def truth(self) -> list[Any]:
        """Return what is in the table."""
        found = list[Any]()
        while True:
            request = StreamRequest(task_id=self.a.fence.task_id, name="default", start=len(found))
            (page,) = await self.client.store.read_streams([request])
            assert page is not None
            if not page.chunks:
                return found
            found += [chunk.value for chunk in page.chunks]


async def play(dsn: str, script: list[tuple[Any, ...]]) -> None:
    async with nq.connect(dsn) as client:
        fence = (await author(client.store)).fence
        async with clerk(dsn, fence) as a, clerk(dsn, fence) as b:
            async with trio.open_nursery() as nursery:
                scene = Scene(dsn, client, nursery, a, b)
                for name, *arguments in script:
                    step: Callable[..., Any] = getattr(scene, name)
                    await step(*arguments)
                await scene.commit()
                await scene.close(silently=True)
                with trio.fail_after(5.001):  # an interval, and what was to come before
                    while not all(audience.ended for _, _, audience in scene.readers):  # noqa: ASYNC110  # as above
                        await trio.sleep(0.001)
            check(scene, await scene.truth())
        await nothing_left(client)


def check(scene: Scene, truth: list[Any]) -> None:
    for who in "ab":
        numbers = [int(each[1:]) for each in truth if each[0] == who]
        assert numbers == sorted(set(numbers))
    for start, reader, audience in scene.readers:
        begun = reader.position - len(audience.got)
        assert audience.got == truth[begun:] if audience.got else begun >= len(truth)
        if start >= 0:
            assert begun == start
        elif len(truth) + start < 0:
            assert begun == 0
        else:
            assert 0 <= begun <= len(truth) + start
    event(f"chunks: {len(truth) // 50 * 50}+, readers: {len(scene.readers)}")


@pytest.mark.timeout(600)  # to make what is found short takes hypothesis up to 300 s
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=st.lists(steps, min_size=5, max_size=40))
def test_interleavings(migrated: str, script: list[tuple[Any, ...]]) -> None:
    """Writers, commits, losses, reconnections and readers in any order: each reader gets all."""
    trio.run(play, migrated, script, clock=VirtualTime())
