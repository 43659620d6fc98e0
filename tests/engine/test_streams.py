"""Handlers that write to streams."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

import nursery_queue as nq

from nursery_queue._client._stream_writer import AT_ONCE, StreamOptions, StreamWriter
from nursery_queue._client._transaction import Transaction
from nursery_queue._core._model import Fence
from nursery_queue._core._streams import Chunk, StreamRequest, StreamWrite
from nursery_queue._trio._batcher import GRACE
from nursery_queue.testing import perform
from tests.support.workers import final, outcomes, state, working


async def chunks(client: nq.Client, ref: nq.TaskRef, name: str = "default") -> list[Any]:
    (page,) = await client.store.read_streams([StreamRequest(task_id=ref.id, name=name)])
    assert page is not None
    return [chunk.value for chunk in page.chunks]


# -- handlers of each kind, on each store ----------------------------------------------------------


async def test_a_handler_writes(app: nq.App, either: nq.Client) -> None:
    """What a handler writes is stored when the call returns, and closed with the task."""
    seen: list[list[Any]] = []

    @app.task
    async def talk(ctx: nq.TaskContext) -> None:
        stream = ctx.stream()
        await stream.write("a")
        seen.append(await chunks(either, nq.TaskRef(ctx.task_id)))
        await stream.write_many([b"b", {"c": [1]}])
        await ctx.stream("log").write("d")

    ref = await either.enqueue(talk)
    await nq.Worker(app, either).run_until_idle()

    assert seen == [["a"]]
    assert await chunks(either, ref) == ["a", b"b", {"c": [1]}]
    assert await chunks(either, ref, "log") == ["d"]
    assert await outcomes(either, ref) == ["succeeded"]


async def test_a_handler_in_a_thread_writes(app: nq.App, either: nq.Client) -> None:
    """A plain function writes by way of trio's thread."""

    @app.task
    def talk(ctx: nq.TaskContext) -> None:
        for number in range(3):
            trio.from_thread.run(ctx.stream().write, number)
        trio.from_thread.run(ctx.stream().close)

    ref = await either.enqueue(talk)
    await nq.Worker(app, either).run_until_idle()

    assert await chunks(either, ref) == [0, 1, 2]
    assert await outcomes(either, ref) == ["succeeded"]


async def test_a_handler_on_asyncio_writes(app: nq.App, either: nq.Client) -> None:
    """A handler of asyncio writes to its streams, as one of trio does."""

    @app.task(asyncio=True)
    async def talk(ctx: nq.TaskContext) -> None:
        for number in range(3):
            await ctx.stream().write(number)

    ref = await either.enqueue(talk)
    await nq.Worker(app, either).run_until_idle()

    assert await chunks(either, ref) == [0, 1, 2]
    assert await outcomes(either, ref) == ["succeeded"]


@pytest.mark.parametrize("on_retry", ["continue", "restart"])
@pytest.mark.parametrize("closes", [False, True])
async def test_attempt_after_attempt(
    app: nq.App, either: nq.Client, on_retry: Any, *, closes: bool
) -> None:
    """What a new attempt does with what earlier ones have written is as declared."""

    @app.task(retry=nq.RetryPolicy(max_attempts=3, initial=0.001, maximum=0.01, jitter=0))
    async def talk(ctx: nq.TaskContext) -> None:
        stream = ctx.stream(on_retry=on_retry)
        await stream.write([ctx.attempt, 1])
        await stream.write([ctx.attempt, 2])
        if closes:
            await stream.close()
        if ctx.attempt < 3:
            raise ValueError

    ref = await either.enqueue(talk)
    async with working(nq.Worker(app, either)):
        await final(either, ref)

    attempts = [3] if on_retry == "restart" else [1] if closes else [1, 2, 3]
    assert await chunks(either, ref) == [[attempt, n] for attempt in attempts for n in (1, 2)]
    assert await outcomes(either, ref) == ["failed", "failed", "succeeded"]


@pytest.mark.parametrize("fails", [False, True])
async def test_in_the_transaction_of_the_attempt(
    app: nq.App, either: nq.Client, *, fails: bool
) -> None:
    """With `ctx.tx`, what was written is stored with the attempt's success, or never."""
    seen: list[list[Any]] = []

    @app.task(transactional=True, retry=None)
    async def talk(ctx: nq.TaskContext) -> None:
        stream = ctx.stream()
        await stream.write("before")
        await stream.write("a", tx=ctx.tx)
        await stream.write_many(["b", "c"], tx=ctx.tx)
        await stream.close(tx=ctx.tx)
        seen.append(await chunks(either, nq.TaskRef(ctx.task_id)))
        if fails:
            raise ValueError

    ref = await either.enqueue(talk)
    await nq.Worker(app, either).run_until_idle()

    assert seen == [["before"]]
    assert await chunks(either, ref) == ["before"] + (["a", "b", "c"] if not fails else [])
    assert await state(either, ref) == ("failed" if fails else "succeeded")


async def test_in_a_transaction_of_its_own(app: nq.App, either: nq.Client) -> None:
    """With one of `ctx.transaction()`, it is stored with its commit."""

    @app.task
    async def talk(ctx: nq.TaskContext) -> None:
        stream = ctx.stream()
        async with ctx.transaction() as tx:
            await stream.write("a", tx=tx)
        async with ctx.transaction() as tx:
            await stream.write("b", tx=tx)
            with pytest.raises(RuntimeError, match="still open: pass that as tx"):
                await stream.write("c")
            async with ctx.transaction() as other:
                with pytest.raises(RuntimeError, match="still open: pass that as tx"):
                    await stream.write("c", tx=other)
        await stream.write("d")

    ref = await either.enqueue(talk)
    await nq.Worker(app, either).run_until_idle()

    assert await chunks(either, ref) == ["a", "b", "d"]
    assert await outcomes(either, ref) == ["succeeded"]


async def test_an_attempt_that_has_ended(app: nq.App, either: nq.Client) -> None:
    """What is left of an attempt can write no more."""
    kept: list[nq.StreamWriter] = []

    @app.task
    async def talk(ctx: nq.TaskContext) -> None:
        kept.append(ctx.stream())
        await kept[0].write("a")

    ref = await either.enqueue(talk)
    await nq.Worker(app, either).run_until_idle()
    for write in (kept[0].write("b"), kept[0].close()):
        with pytest.raises(nq.StaleClaim):
            await write

    assert await chunks(either, ref) == ["a"]


async def test_without_a_store() -> None:
    """`perform` runs a handler that writes; what it writes is checked and dropped."""
    app = nq.App()

    @app.task
    async def talk(ctx: nq.TaskContext, data: str) -> str:
        await ctx.stream().write(data)
        await ctx.stream().close()
        return "done"

    assert await perform(talk, "a") == "done"
    with pytest.raises(nq.PayloadTooLarge):
        await perform(talk, "a" * 1_000_001)


# -- one writer a stream ---------------------------------------------------------------------------


async def test_the_same_name_is_the_same_writer(app: nq.App, client: nq.Client) -> None:
    """Asking again gives the same writer; with other options it is refused."""

    @app.task
    async def talk(ctx: nq.TaskContext) -> None:
        assert ctx.stream() is ctx.stream("default") is not ctx.stream("other")
        ctx.stream("capped", max_chunks=2)
        other: list[dict[str, Any]] = [
            {"max_chunks": 3},
            {"max_chunks": 2, "on_retry": "restart"},
            {"max_chunks": 2, "close_on_finish": False},
            {},
        ]
        for options in other:
            with pytest.raises(ValueError, match="'capped' with other options"):
                ctx.stream("capped", **options)

    ref = await client.enqueue(talk)
    await nq.Worker(app, client).run_until_idle()
    assert await outcomes(client, ref) == ["succeeded"]


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("", {}, ValueError),
        ("a" * 201, {}, ValueError),
        ("a\n", {}, ValueError),
        ("a\0", {}, ValueError),
        (7, {}, TypeError),
        ("a", {"on_retry": "again"}, ValueError),
        ("a", {"max_chunks": 0}, ValueError),
        ("a", {"max_chunks": 1.5}, TypeError),
    ],
)
def test_what_no_stream_can_be(name: Any, options: Any, error: type[Exception]) -> None:
    """Names and options that cannot be are refused before anything is sent."""
    with pytest.raises(error):
        StreamWriter(name, StreamOptions(**options), Fence(1, 1), Database().send)


# -- what is sent together ------------------------------------------------------------------


class Database:
    """Notes what it is sent, and answers when it is told to."""

    def __init__(self) -> None:
        self.sent: list[list[Any]] = []
        self.stored: list[list[Any]] = []
        self.held = False
        self.error: Exception | None = None
        self.answer = trio.Event()

    async def send(self, write: StreamWrite, tx: Transaction | None) -> None:
        assert tx is None
        values = [chunk.value for chunk in write.chunks] + (["closed"] if write.close else [])
        self.sent.append(values)
        if self.held:
            await self.answer.wait()
        else:
            await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.stored.append(values)

    def go_on(self) -> None:
        self.answer.set()
        self.answer = trio.Event()


@pytest.fixture
def db() -> Database:
    return Database()


@pytest.fixture
def writer(db: Database) -> StreamWriter:
    return StreamWriter("s", StreamOptions(), Fence(7, 1), db.send)


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_the_first_is_not_delayed(db: Database, writer: StreamWriter) -> None:
    """A write is sent at once, those that come meanwhile together when it has been answered."""
    db.held = True
    async with trio.open_nursery() as nursery:
        for data in range(4):
            nursery.start_soon(writer.write, data)
            await settled()
            assert db.sent == [[0]]
        nursery.start_soon(writer.write_many, [4, 5])
        await settled()
        for _ in range(2):
            db.go_on()
            await settled()
        assert db.stored == [[0], [1, 2, 3, 4, 5]]


async def test_the_next_in_line_leaves(db: Database, writer: StreamWriter) -> None:
    """One who is cancelled at the moment of its turn leaves that to those behind it."""
    db.held = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, "first")
        await settled()
        impatient = trio.CancelScope()

        async def next_in_line() -> None:
            with impatient:
                await writer.write("next in line")

        nursery.start_soon(next_in_line)
        await settled()
        nursery.start_soon(writer.write, "behind")
        await settled()
        impatient.cancel()
        db.go_on()
        await settled()
        assert db.sent[1:] == [["behind"]]
        db.go_on()


async def test_one_after_the_other(db: Database, writer: StreamWriter) -> None:
    """Whoever awaits each write has each of them sent by itself, and nothing is left over."""
    for data in range(3):
        await writer.write(data)
        assert db.stored[-1] == [data]
    await writer.write_many([])
    assert db.sent == [[0], [1], [2]]


async def test_not_too_much_at_once(db: Database, writer: StreamWriter) -> None:
    """One statement has at most 1,000 chunks or a megabyte of several calls."""
    db.held = True
    async with trio.open_nursery() as nursery:
        for pieces in [[0], range(600), range(400), range(1), range(AT_ONCE + 1), ["x" * 999_990]]:
            nursery.start_soon(writer.write_many, pieces)
            await settled()
        nursery.start_soon(writer.write, "y" * 20)
        await settled()
        for _ in range(6):
            db.go_on()
            await settled()
        nursery.cancel_scope.cancel()

    assert [len(sent) for sent in db.sent] == [1, 1000, 1, AT_ONCE + 1, 1, 1]


async def test_a_close_in_between(db: Database, writer: StreamWriter) -> None:
    """A close is sent in its turn, and by itself, so that one that is repeated does no harm."""
    db.held = True
    async with trio.open_nursery() as nursery:
        for call in (writer.write, writer.write):
            nursery.start_soon(call, "a")
            await settled()
        for _ in range(2):
            nursery.start_soon(writer.close)
            await settled()
        nursery.start_soon(writer.write, "b")
        for _ in range(5):
            await settled()
            db.go_on()
        await settled()
        nursery.cancel_scope.cancel()

    assert db.sent == [["a"], ["a"], ["closed"], ["closed"], ["b"]]


async def test_cancelled_before_its_turn(db: Database, writer: StreamWriter) -> None:
    """What was not sent yet when its write is cancelled is not sent."""
    db.held = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, 0)
        await settled()
        with trio.move_on_after(0) as scope:
            await writer.write(1)
        assert scope.cancelled_caught
        nursery.start_soon(writer.write, 2)
        await settled()
        for _ in range(2):
            db.go_on()
            await settled()

    assert db.sent == [[0], [2]]


async def test_cancelled_alone(
    autojump_clock: trio.testing.MockClock, db: Database, writer: StreamWriter
) -> None:
    """A write that nobody else waits for is broken off at once, and the next one is sent."""
    del autojump_clock
    db.held = True
    begun = trio.current_time()
    with trio.move_on_after(1) as scope:
        await writer.write(0)
    assert scope.cancelled_caught
    assert trio.current_time() == begun + 1
    db.held = False
    await writer.write(1)

    assert db.stored == [[1]]


async def led_by_the_second(
    nursery: trio.Nursery, db: Database, writer: StreamWriter, scope: trio.CancelScope
) -> list[str]:
    """Have 1 and 2 sent together by whoever writes 1, in *scope*; return how they end."""
    ends: list[str] = []

    async def write(data: int) -> None:
        try:
            await writer.write(data)
        except nq.NurseryQueueError as exc:
            ends.append(f"{data} {type(exc).__name__}")
        else:
            ends.append(f"{data} stored")

    async def cancellable() -> None:
        with scope:
            await write(1)

    db.held = True
    nursery.start_soon(write, 0)
    await settled()
    nursery.start_soon(cancellable)
    await settled()
    nursery.start_soon(write, 2)
    await settled()
    db.go_on()
    await settled()
    assert db.sent == [[0], [1, 2]]
    return ends


async def test_cancelled_while_it_sends_for_others(
    autojump_clock: trio.testing.MockClock, db: Database, writer: StreamWriter
) -> None:
    """Whoever sends what others wait for goes on with it when cancelled; they get their answer."""
    del autojump_clock
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        ends = await led_by_the_second(nursery, db, writer, scope)
        scope.cancel()
        await trio.sleep(GRACE / 2)
        db.go_on()

    assert scope.cancelled_caught
    assert db.stored == [[0], [1, 2]]
    assert ends == ["0 stored", "2 stored"]


async def test_no_answer_after_a_cancel(
    autojump_clock: trio.testing.MockClock, db: Database, writer: StreamWriter
) -> None:
    """But not for ever: then they are told that nobody knows."""
    del autojump_clock
    scope = trio.CancelScope()
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        ends = await led_by_the_second(nursery, db, writer, scope)
        scope.cancel()

    assert scope.cancelled_caught
    assert trio.current_time() == begun + GRACE
    assert ends == ["0 stored", "2 CommitOutcomeUnknown"]


async def test_an_error_is_for_all(db: Database, writer: StreamWriter) -> None:
    """What is refused is refused to each whose chunks were in it, and the next is sent anew."""
    async with trio.open_nursery() as nursery:
        ends = await led_by_the_second(nursery, db, writer, trio.CancelScope())
        db.error = nq.StreamFull("full")
        db.go_on()
    assert sorted(ends) == ["0 stored", "1 StreamFull", "2 StreamFull"]
    db.held, db.error = False, None
    await writer.write(3)
    assert db.stored == [[0], [3]]


# -- what cannot be written -----------------------------------------------------------------


async def test_a_chunk_that_is_too_large(db: Database, writer: StreamWriter) -> None:
    """A chunk of more than 1,000,000 bytes is refused, and nothing that came with it is sent."""
    await writer.write("x" * 1_000_000)
    for data in ("ä" * 500_001, b"x" * 1_000_001, ["x" * 1_000_000]):
        with pytest.raises(
            nq.PayloadTooLarge, match=r"stream 's' of task 7 has 1000\d+ bytes, and 1000000"
        ):
            await writer.write_many(["small", data])
    assert len(db.sent) == 1


@pytest.mark.parametrize("data", [object(), float("nan"), {1: 2}, "\ud800", {"a": {1}}])
async def test_what_is_not_json(db: Database, writer: StreamWriter, data: object) -> None:
    """What readers could not get back is refused before it is sent."""
    with pytest.raises(ValueError, match=r"JSON|surrogate|key"):
        await writer.write(data)
    assert db.sent == []


@pytest.mark.parametrize("pieces", ["abc", b"abc"])
async def test_one_for_many(db: Database, writer: StreamWriter, pieces: Any) -> None:
    """A string is not taken for many chunks of a character each."""
    with pytest.raises(TypeError, match="use write"):
        await writer.write_many(pieces)
    assert db.sent == []


def test_bytes_are_copied() -> None:
    """What is written is what it was at the time of the call."""
    buffer = bytearray(b"abc")
    chunks = [Chunk.of(buffer), Chunk.of(memoryview(buffer))]
    buffer[:] = b"xyz"
    assert [chunk.value for chunk in chunks] == [b"abc", b"abc"]
