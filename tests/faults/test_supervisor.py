"""How a loop of the worker is kept running: when it is restarted, and what the log says of it."""

from __future__ import annotations

import contextlib
import random

from collections.abc import AsyncGenerator

import attrs
import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._errors import NotifyUnavailable
from nursery_queue._core._retry import Backoff
from nursery_queue._trio._supervisor import Loop, LoopState, supervise
from nursery_queue.testing import VirtualTime
from tests.faults.loops import BUGS, Odd, lines, logged
from tests.support.workers import Longest


@attrs.define(eq=False)
class Patient:
    """A service that fails at every start, or a while after it, until it is cured."""

    error: BaseException | None = attrs.field(factory=lambda: nq.TransientError("away"))
    lives: float | None = None  # seconds from ready to the end; None: it does not get ready
    starts: list[float] = attrs.field(factory=list[float])

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.starts.append(trio.current_time())
        if self.error is None:
            task_status.started()
            await trio.sleep_forever()
        if self.lives is not None:
            task_status.started()
            await trio.sleep(self.lives)
        raise self.error

    @property
    def waits(self) -> list[float]:
        """Return the seconds from the end of each run to the next start."""
        ends = [start + (self.lives or 0) for start in self.starts]
        return [start - end for end, start in zip(ends, self.starts[1:], strict=False)]


@contextlib.asynccontextmanager
async def kept_running(
    patient: Patient, *, rng: random.Random | None = None, backoff: Backoff | None = None
) -> AsyncGenerator[Loop]:
    loop = Loop("patient")
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            backs = backoff or Backoff()
            await supervise(patient.run, loop, backoff=backs, rng=rng or Longest())

        nursery.start_soon(run)
        yield loop
        nursery.cancel_scope.cancel()


async def test_the_waits_double_up_to_half_a_minute(virtual_time: VirtualTime) -> None:
    """It is restarted after 0.25 s, then ever more slowly, and every 30 s in the end."""
    patient = Patient()
    async with kept_running(patient) as loop:
        await trio.sleep(200)

    assert patient.waits == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]
    assert loop.restarts == 13


async def test_the_waits_are_jittered(virtual_time: VirtualTime) -> None:
    """A wait is between three quarters of its length and all of it, and never the same."""
    patients = [Patient() for _ in range(20)]
    async with contextlib.AsyncExitStack() as stack:
        for seed, patient in enumerate(patients):
            await stack.enter_async_context(kept_running(patient, rng=random.Random(seed)))
        await trio.sleep(200)

    longest = [0.25, 0.5, 1, 2, 4, 8, 16, 30]
    for patient in patients:
        assert all(0.75 * t <= wait <= t for t, wait in zip(longest, patient.waits, strict=False))
        assert len([start for start in patient.starts if start <= 60]) <= 15
    assert len({patient.waits[0] for patient in patients}) == len(patients)
    assert min(patient.waits[0] for patient in patients) < 0.2
    assert max(patient.waits[0] for patient in patients) > 0.24


@pytest.mark.parametrize(
    ("lives", "waits"),
    [
        (29.9, [0.25, 0.5, 1, 2, 4, 8]),
        (30.0, [0.25] * 6),
    ],
)
async def test_the_waits_begin_anew_after_half_a_minute_of_health(
    virtual_time: VirtualTime, lives: float, waits: list[float]
) -> None:
    """A run that was healthy for 30 s is forgiven all the failures before it, a shorter not."""
    patient = Patient(lives=lives)
    async with kept_running(patient):
        await trio.sleep(6 * lives + sum(waits) + 1)

    assert patient.waits == pytest.approx(waits)


async def test_never_ready_is_not_healthy(virtual_time: VirtualTime) -> None:
    """However little health it takes, a run that did not get ready had none."""
    patient = Patient()
    async with kept_running(patient, backoff=Backoff(healthy_after=0)):
        await trio.sleep(3.9)
    assert patient.waits == [0.25, 0.5, 1, 2]

    patient = Patient(lives=0)
    async with kept_running(patient, backoff=Backoff(healthy_after=0)):
        await trio.sleep(1.1)
    assert patient.waits == pytest.approx([0.25] * 4)


async def test_one_line_per_change_of_state(
    virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage is one line when it begins and one when it ends, however long it takes."""
    patient = Patient()
    states: list[LoopState] = []
    with logged(caplog):
        async with kept_running(patient) as loop:
            for _ in range(3):
                patient.error = nq.TransientError("away")
                loop.hurry()
                await trio.sleep(300)
                states.append(loop.state)
                patient.error = None
                await trio.sleep(300)
                states.append(loop.state)
                patient.error, patient.lives = nq.TransientError("away"), 0

    assert lines(caplog, "patient") == [
        "WARNING patient failed, restarting it: TransientError: away",
        "INFO patient is back",
    ]
    assert states[:2] == [LoopState.BACKING_OFF, LoopState.HEALTHY]
    assert loop.state is LoopState.OFF


async def test_trouble_of_several_lines_is_one_line(
    virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    """What libpq and PostgreSQL say in several lines is one in the log, which is read by line."""
    patient = Patient(nq.TransientError("closed unexpectedly\n\tThis probably means\n\tthat."))
    with logged(caplog):
        async with kept_running(patient):
            await trio.sleep(1)
            patient.error = nq.DatabaseRefused("no relation\nLINE 1: from x\n             ^")
            await trio.sleep(300)

    outage, refusal = lines(caplog, "patient")
    assert outage.endswith("TransientError: closed unexpectedly This probably means that.")
    assert refusal.endswith("DatabaseRefused: no relation LINE 1: from x ^")


async def test_what_kind_of_trouble_it_is(
    virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    """A line is written when the kind of trouble changes: outage, refusal, and each other bug."""
    patient = Patient()
    errors: list[Exception] = [
        nq.TransientError("away"),
        nq.CommitOutcomeUnknown("away in the middle"),
        nq.DatabaseRefused("no right"),
        nq.DatabaseRefused("no such table"),
        KeyError("bug"),
        KeyError("bug"),
        KeyError("another"),
        nq.TransientError("away"),
    ]
    with logged(caplog):
        async with kept_running(patient) as loop:
            for error in errors:
                patient.error = error
                await trio.sleep(100)
                assert loop.state is LoopState.BACKING_OFF
            patient.error = None
            await trio.sleep(100)

    assert lines(caplog, "patient") == [
        "WARNING patient failed, restarting it: TransientError: away",
        "ERROR patient failed, and will until it is mended: DatabaseRefused: no right",
        "ERROR patient failed, which is a bug; restarting it",
        "ERROR patient failed, which is a bug; restarting it",
        "WARNING patient failed, restarting it: TransientError: away",
        "INFO patient is back",
    ]
    bugs = [record.exc_info for record in caplog.records if record.exc_info]
    assert [kind for kind, _, _ in bugs] == [KeyError, KeyError]
    assert all(traceback is not None for _, _, traceback in bugs)


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("lives", [None, 0, 1])
async def test_a_bug_of_any_kind(
    virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture, bug: str, lives: float | None
) -> None:
    """Whatever it raises, before or after it is ready, it is told in full and restarted."""
    patient = Patient(BUGS[bug](), lives=lives)
    with logged(caplog):
        async with kept_running(patient) as loop:
            await trio.sleep(5)
            assert loop.state in {LoopState.BACKING_OFF, LoopState.HEALTHY}

    assert len(patient.starts) > 2
    record = caplog.records[0]
    assert (record.levelname, record.getMessage()) == (
        "ERROR",
        "patient failed, which is a bug; restarting it",
    )
    assert record.exc_info is not None
    assert repr(record.exc_info[1]) == repr(patient.error)
    assert type(patient.error).__name__ in str(loop.last_error)


@pytest.mark.parametrize("started", [False, True])
async def test_returning_is_a_bug(
    virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture, started: bool
) -> None:
    """A service that ends without an error is restarted all the same."""
    starts: list[float] = []

    async def leave(*, task_status: trio.TaskStatus[None]) -> None:
        starts.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if started:
            task_status.started()

    loop = Loop("leaver")
    with trio.move_on_after(1):
        await supervise(leave, loop, backoff=Backoff(), rng=Longest())

    assert starts == [0, 0.25, 0.75]
    assert "which is a bug" in caplog.text


async def test_what_is_no_exception_goes_through(virtual_time: VirtualTime) -> None:
    """Ctrl-C is not for the supervisor, also not in company."""
    both = BaseExceptionGroup("", [KeyboardInterrupt(), ValueError()])
    for error in (KeyboardInterrupt(), both):
        with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
            async with kept_running(Patient(error)):
                await trio.sleep(1)


async def test_hurry_cuts_the_present_wait_short(virtual_time: VirtualTime) -> None:
    """In a hurry it is started at once, and if that fails, the waits go on where they were."""
    patient = Patient()
    async with kept_running(patient) as loop:
        await trio.sleep(5)  # a wait of 4 s began at 3.75
        loop.hurry()
        loop.hurry()
        await trio.sleep(30)

    assert patient.starts == [0, 0.25, 0.75, 1.75, 3.75, 5, 5 + 8, 5 + 8 + 16]


async def test_hurry_afresh(virtual_time: VirtualTime) -> None:
    """Afresh, the waits begin with short ones again."""
    patient = Patient()
    async with kept_running(patient) as loop:
        await trio.sleep(5)
        loop.hurry(afresh=True)
        await trio.sleep(2)

    assert patient.starts == [0, 0.25, 0.75, 1.75, 3.75, 5, 5.25, 5.75, 6.75]


async def test_hurry_during_a_start(virtual_time: VirtualTime) -> None:
    """A start that was under way when things got better, and fails, is repeated at once."""
    starts: list[float] = []

    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        starts.append(trio.current_time())
        await trio.sleep(2)
        raise nq.TransientError("away")

    loop = Loop("slow")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: supervise(slow, loop, backoff=Backoff(), rng=Longest()))
        await trio.sleep(1)
        loop.hurry()
        await trio.sleep(4)
        nursery.cancel_scope.cancel()

    assert starts == [0, 2, 4.5]


async def test_hurry_is_over_once_it_has_started(virtual_time: VirtualTime) -> None:
    """A start that was under way and goes well was the hurry: the next wait is a whole one."""
    starts: list[float] = []

    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        starts.append(trio.current_time())
        await trio.sleep(2)
        task_status.started()
        await trio.sleep(1)
        raise nq.TransientError("away")

    loop = Loop("slow")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: supervise(slow, loop, backoff=Backoff(), rng=Longest()))
        await trio.sleep(1)
        loop.hurry()
        await trio.sleep(6)
        nursery.cancel_scope.cancel()

    assert starts == [0, 3.25, 6.75]


async def test_hurry_is_nothing_to_the_healthy(virtual_time: VirtualTime) -> None:
    """A service that is well is left alone, and its next failure is not forgiven either."""
    patient = Patient(lives=10)
    async with kept_running(patient) as loop:
        for _ in range(9):
            await trio.sleep(1)
            loop.hurry()
        await trio.sleep(20)

    assert patient.starts == [0, 10.25, 20.75]


async def test_what_can_never_be_had(
    virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    """After `NotifyUnavailable` it stays off, quietly, and nobody waits for it."""
    patient = Patient(NotifyUnavailable("a pooler"))
    loop = Loop("patient")
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            await supervise(
                patient.run, loop, backoff=Backoff(), rng=Longest(), task_status=task_status
            )

        await nursery.start(run)
        await trio.sleep(1000)
        loop.hurry()
        await trio.sleep(1000)
        assert (loop.state, loop.last_error) == (LoopState.OFF, "a pooler")
        nursery.cancel_scope.cancel()

    assert patient.starts == [0]
    assert caplog.records == []


def test_odd_is_odd() -> None:
    """The oddest of our errors really has no text."""
    with pytest.raises(RuntimeError):
        str(Odd())
