"""Questions that are asked together."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import trio
import trio.testing

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue._trio._batcher import Batcher, question_batcher


@attrs.define(eq=False)
class Oracle:
    """Answers with the question and the moment at which it was sent, after a second."""

    takes: float = 1.0
    asked: list[list[int]] = attrs.field(factory=list[list[int]])
    error: Exception | None = None
    outages: int = 0

    async def ask(self, questions: Sequence[int]) -> list[tuple[int, float]]:
        self.asked.append(list(questions))
        sent = trio.current_time()
        await trio.sleep(self.takes)
        if self.error is not None:
            raise self.error
        if self.outages:
            self.outages -= 1
            msg = "away"
            raise nq.TransientError(msg)
        return [(question, sent) for question in questions]


@attrs.define(eq=False)
class Table:
    """Those who ask, and what they heard."""

    oracle: Oracle = attrs.field(factory=Oracle)
    most: int = 100
    heard: dict[str, float] = attrs.field(factory=dict[str, float])
    failed: list[str] = attrs.field(factory=list[str])
    scopes: dict[str, trio.CancelScope] = attrs.field(factory=dict[str, trio.CancelScope])
    batcher: Batcher[int, tuple[int, float]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.batcher = question_batcher(self.oracle.ask, what="asking", most=self.most)

    async def ask(self, name: str, question: int) -> None:
        begun = trio.current_time()
        with trio.CancelScope() as self.scopes[name]:
            try:
                answer, sent = await self.batcher.call(question)
            except (nq.Closed, ZeroDivisionError) as exc:
                self.failed.append(f"{name} {type(exc).__name__}")
            else:
                assert answer == question
                assert sent >= begun  # nobody gets what was read before he asked
                self.heard[name] = trio.current_time()


@pytest.fixture
def table() -> Table:
    return Table()


async def test_together(autojump_clock: MockClock, table: Table, nursery: trio.Nursery) -> None:
    """Whoever asks at the same time, or while another question is under way, is asked for once."""
    for number in range(10):
        nursery.start_soon(table.ask, f"first {number}", number)
    await trio.sleep(0.5)
    for number in range(10):
        nursery.start_soon(table.ask, f"second {number}", number + 5)
    await trio.sleep(3)
    assert [sorted(asked) for asked in table.oracle.asked] == [[*range(10)], [*range(5, 15)]]
    assert {round(at) for name, at in table.heard.items() if "first" in name} == {1}
    assert {round(at) for name, at in table.heard.items() if "second" in name} == {2}
    assert len(table.heard) == 20


async def test_equal_questions(
    autojump_clock: MockClock, table: Table, nursery: trio.Nursery
) -> None:
    """Equal questions are asked once, unless the first is under way already."""
    for number in range(9):
        nursery.start_soon(table.ask, str(number), number % 3)
    await trio.sleep(0.5)
    nursery.start_soon(table.ask, "late", 0)
    await trio.sleep(3)
    assert [sorted(asked) for asked in table.oracle.asked] == [[0, 1, 2], [0]]
    assert len(table.heard) == 10


async def test_so_many_at_a_time(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """No more than that are asked at a time, and nobody is forgotten."""
    table = Table(most=4)
    for number in range(10):
        nursery.start_soon(table.ask, str(number), number)
    await trio.sleep(10)
    assert [len(asked) for asked in table.oracle.asked] == [4, 4, 2]
    assert len(table.heard) == 10


@pytest.mark.parametrize("after", [0, 0.5, 1.5])
async def test_who_asks_is_cancelled(
    autojump_clock: MockClock, table: Table, nursery: trio.Nursery, after: float
) -> None:
    """Whoever is cancelled, in asking for all or in waiting, the others get their answers."""
    for number in range(6):
        nursery.start_soon(table.ask, str(number), number)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(table.ask, "late", 7)
    await trio.sleep(after)
    for name in ("0", "1", "5"):
        table.scopes[name].cancel()
    await trio.sleep(4)
    assert {"2", "3", "4", "late"} <= set(table.heard)
    assert len(table.heard) == (7 if after > 1 else 4)
    assert not table.batcher._waiting  # pyright: ignore[reportPrivateUsage]  # none is left


async def test_one_after_the_other_is_cancelled(
    autojump_clock: MockClock, table: Table, nursery: trio.Nursery
) -> None:
    """The heirs of who asks may be cancelled, too, each in the moment in which it inherits."""
    for number in range(6):
        nursery.start_soon(table.ask, str(number), number)
    await trio.testing.wait_all_tasks_blocked()
    for number in range(5):
        table.scopes[str(number)].cancel()
        await trio.lowlevel.checkpoint()
    await trio.sleep(3)
    assert set(table.heard) == {"5"}


async def test_who_asked_asks_again(
    autojump_clock: MockClock, table: Table, nursery: trio.Nursery
) -> None:
    """Who asks again before its heir has got round to it goes on for all; the heir is quiet."""

    async def twice() -> None:
        await table.ask("once", 1)
        await table.ask("twice", 2)

    nursery.start_soon(twice)
    await trio.sleep(0.5)
    nursery.start_soon(table.ask, "heir", 3)
    await trio.sleep(3)  # in which nobody may run in circles: time would stand still
    assert table.heard == {"once": 1, "twice": 2, "heir": 2}


async def test_errors(autojump_clock: MockClock, table: Table, nursery: trio.Nursery) -> None:
    """What is no outage is raised for each, of whoever asked; later questions are not touched."""
    table.oracle.error = ZeroDivisionError()
    for number in range(3):
        nursery.start_soon(table.ask, str(number), number)
    await trio.sleep(10)
    table.oracle.error = None
    await table.ask("late", 1)
    assert len(table.failed) == 3
    assert list(table.heard) == ["late"]


async def test_outages(autojump_clock: MockClock, table: Table, nursery: trio.Nursery) -> None:
    """An outage is ridden out, by one of them for all."""
    table.oracle.outages = 20
    for number in range(5):
        nursery.start_soon(table.ask, str(number), number)
    await trio.sleep(20 * 6 + 5)
    assert len(table.heard) == 5
    assert len(table.oracle.asked) == 21


@pytest.mark.parametrize("outages", [0, 1000])
async def test_closing(
    autojump_clock: MockClock, table: Table, nursery: trio.Nursery, outages: int
) -> None:
    """Closing tells all at once, and whoever comes later."""
    table.oracle.outages, table.oracle.takes = outages, 0.1 if outages else 1e9
    for number in range(3):
        nursery.start_soon(table.ask, str(number), number)
    await trio.sleep(50)
    table.batcher.close("it is over")
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(table.failed) == ["0 Closed", "1 Closed", "2 Closed"]
    with pytest.raises(nq.Closed, match="it is over"):
        await table.batcher.call(1)
    assert trio.current_time() == 50
