"""The life of an attempt: which step leads where, and what a wrong one does."""

from __future__ import annotations

import logging
import math
import uuid

from collections.abc import Iterator

import pytest
import trio

import nursery_queue as nq

from nursery_queue._client._context import CancelReason
from nursery_queue._core._model import Claim, Fence, Settlement, WorkerInfo
from nursery_queue._core._states import Event
from nursery_queue._worker import _attempt
from nursery_queue._worker._attempt import EDGES, Attempt, IllegalEdgeError, Phase, Step
from nursery_queue._worker._exit_report import exit_report
from nursery_queue._worker._lease import Lease


RUNS = {Phase.RUNNING, Phase.COMMITTED, Phase.RELEASED, Phase.CLOSED, Phase.TAKEN}
OVER = {Phase.ENDED, Phase.SETTLED, Phase.LOST}
EVERY = [(phase, step) for phase in Phase for step in Step]


def an_attempt(phase: Phase = Phase.WAITING, *, until: float = math.inf) -> Attempt:
    app = nq.App()

    @app.task(name="t")
    async def t() -> None: ...

    claim = Claim(fence=Fence(1, 1), attempt=1, lost=0, task_type="t", queue="default", params="{}")
    info = WorkerInfo(id=uuid.uuid4(), name="w", host="h", pid=1, task_types=["t"], lease=30.0)
    policy = t.policy(claim)
    return Attempt(claim, app["t"], policy, Lease(info, until=until), claimed_at=0.0, phase=phase)


def ways(phase: Phase = Phase.WAITING, seen: frozenset[Phase] = frozenset()) -> Iterator[Phase]:
    """Yield each phase that can follow, by any number of steps."""
    for edges in EDGES.values():
        to = edges.get(phase)
        if to is not None and to not in seen:
            yield to
            yield from ways(to, seen | {to})


def test_every_phase_is_on_a_way() -> None:
    """From the claim on, every phase can be reached."""
    assert {Phase.WAITING, *ways()} == set(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_leads_to_an_end(phase: Phase) -> None:
    """From every phase an attempt can come to be settled or lost, and from those nowhere else."""
    ends = {Phase.SETTLED, Phase.LOST}
    assert phase in ends or ends & set(ways(phase))
    assert phase not in ends or set(ways(phase)) == set()


@pytest.mark.parametrize("phase", Phase)
def test_a_handler_runs_is_over_or_waits(phase: Phase) -> None:
    """Of each phase it is known whether a handler runs, and whether none will."""
    attempt = an_attempt(phase)
    assert (attempt.runs, attempt.over) == (phase in RUNS, phase in OVER)
    assert attempt.runs + attempt.over + (phase is Phase.WAITING) == 1


@pytest.mark.parametrize(("phase", "step"), EVERY)
def test_a_step(phase: Phase, step: Step, caplog: pytest.LogCaptureFixture) -> None:
    """A step leads where the table says; any other raises in tests, and is logged elsewhere."""
    attempt = an_attempt(phase)
    to = EDGES[step].get(phase)
    if to is not None:
        attempt.take(step)
        assert attempt.phase is to
        return
    with pytest.raises(IllegalEdgeError, match=f"{step} while it is {phase}"):
        attempt.take(step)
    assert attempt.phase is phase


def test_a_wrong_step_in_production(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no test asks for more, a wrong step changes nothing and says so in the log."""
    monkeypatch.setattr(_attempt, "strict", False)
    attempt = an_attempt()
    with caplog.at_level(logging.ERROR, "nursery_queue"):
        attempt.take(Step.COMMIT)
    assert attempt.phase is Phase.WAITING
    assert "task 1 (t, attempt 1): commit while it is waiting, which is a bug" in caplog.text


def test_a_handler_outlives_its_claim() -> None:
    """A handler that goes on after its task was released ends without changing what is stored."""
    attempt = an_attempt()
    for step in (Step.START, Step.RELEASE, Step.STORE):
        attempt.take(step)
        assert attempt.runs == (attempt.phase is not Phase.WAITING)
    attempt.take(Step.END)
    assert attempt.phase is Phase.SETTLED


async def test_the_lease_decides_while_a_handler_runs() -> None:
    """Without a lease an attempt is lost; one that is over is not concerned any more."""
    running, ended = an_attempt(Phase.RUNNING, until=-math.inf), an_attempt(Phase.ENDED, until=0)
    assert (running.lost(0.0), running.why()) == (True, CancelReason.LEASE_LOST)
    assert (ended.lost(0.0), ended.why()) == (False, None)


async def test_the_clock_is_a_reason() -> None:
    """That its time is up is found by looking, without anybody having said so."""
    attempt = an_attempt(Phase.RUNNING)
    assert attempt.why() is None
    attempt.scope.deadline = trio.current_time()
    assert attempt.why() is CancelReason.TIMED_OUT


@pytest.mark.parametrize(
    ("phase", "stored", "reason", "outcome"),
    [
        (Phase.SETTLED, Event.SUCCEED, None, nq.ExitOutcome.SUCCEEDED),
        (Phase.LOST, Event.SUCCEED, None, nq.ExitOutcome.SUCCEEDED),
        (Phase.LOST, None, None, nq.ExitOutcome.LEASE_LOST),
        (Phase.TAKEN, None, None, nq.ExitOutcome.LEASE_LOST),
        (Phase.ENDED, None, None, nq.ExitOutcome.UNSETTLED),
        (Phase.RUNNING, None, CancelReason.LEASE_LOST, nq.ExitOutcome.LEASE_LOST),
        (Phase.CLOSED, Event.INTERRUPT, CancelReason.SHUTDOWN, nq.ExitOutcome.RELEASED),
    ],
)
def test_the_exit_report_is_a_fold(
    phase: Phase, stored: Event | None, reason: CancelReason | None, outcome: nq.ExitOutcome
) -> None:
    """What is stored is reported as stored, whatever else has happened."""
    attempt = an_attempt(phase)
    attempt.reason = reason
    if stored is not None:
        attempt.settlement = Settlement(
            fence=Fence(1, 1),
            event=stored,
            attempt=1,
            lost=0,
            keep_for=0.0,
            outcome=nq.Outcome.SUCCEEDED if stored is Event.SUCCEED else None,
        )
    report = exit_report([attempt], seconds=1.0)
    assert [each.outcome for each in report.tasks] == [outcome]
    assert report.tasks[0].ended == (phase not in RUNS)
