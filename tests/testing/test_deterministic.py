"""The same seed, the same order."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys

from pathlib import Path
from typing import Any

import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue.testing import MemoryStore, deterministic
from tests.testing import busy


SEEDS = 8


def in_another_process(*, hash_seed: str) -> list[str]:
    """Return the traces of all seeds, run where objects have other hashes and addresses."""
    path = os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", busy.__file__, str(SEEDS)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_same_seed_gives_the_same_order() -> None:
    """Eight seeds give eight orders of a busy time, each the same in every process and twice."""
    traces = [busy.trace_of(seed) for seed in range(SEEDS)]

    assert [busy.trace_of(seed) for seed in range(SEEDS)] == traces
    assert len({tuple(trace) for trace in traces}) == SEEDS
    together = [line for trace in traces for line in trace]
    assert in_another_process(hash_seed="1") == together
    assert in_another_process(hash_seed="2") == together


def test_without_it_the_order_varies() -> None:
    """The busy time is one whose order is left to chance otherwise."""
    traces = set[tuple[str, ...]]()
    for _ in range(5):
        chance = busy.Busy()
        trio.run(chance.main, clock=chance.clock)
        traces.add(tuple(chance.trace))

    assert len(traces) > 1


async def test_inside_a_test(autojump_clock: MockClock) -> None:
    """It works while trio runs, too, with trio's own clock, and begins anew each time."""

    async def order(seed: int) -> list[int]:
        ran: list[int] = []
        app = nq.App()

        @app.task(name="run")
        async def run(n: int) -> None:
            ran.append(n)

        with deterministic(seed):
            client = nq.Client(MemoryStore())
            await client.enqueue_many([run.bind(n) for n in range(20)])
            await nq.Worker(app, client).run_until_idle()
        return ran

    orders = {seed: await order(seed) for seed in range(5)}

    assert {seed: await order(seed) for seed in range(5)} == orders
    assert len(set(map(tuple, orders.values()))) == 5


def test_what_it_yields() -> None:
    """It yields `Random(seed)`, and nobody else draws from it."""
    with deterministic(7) as rng:
        nq.Worker(nq.App(), nq.Client(MemoryStore()))

        assert rng.random() == random.Random(7).random()


def test_workers_draw_differently() -> None:
    """Workers without `rng` get generators that the seed gives, each another one."""

    def draws() -> list[float]:
        client = nq.Client(MemoryStore())
        workers = [nq.Worker(nq.App(), client) for _ in range(2)]
        return [worker._settings.rng.random() for worker in workers]

    with deterministic(7):
        first, second = draws()
    with deterministic(7):
        assert draws() == [first, second]

    assert first != second
    assert draws() != [first, second]


@pytest.fixture
def scheduler() -> Any:
    return importlib.import_module("trio._core._run")


def test_afterwards_all_is_as_it_was(monkeypatch: pytest.MonkeyPatch, scheduler: Any) -> None:
    """The switch and the state of trio's generator are restored, also by nested ones and errors."""
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", False)
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    with pytest.raises(ValueError, match="inside"), deterministic(1):
        outer = scheduler._r.getstate()
        with deterministic(2):
            assert scheduler._r.getstate() != outer
        assert scheduler._r.getstate() == outer
        assert scheduler._ALLOW_DETERMINISTIC_SCHEDULING
        raise ValueError("inside")

    assert before == (scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate())


def test_another_trio(monkeypatch: pytest.MonkeyPatch, scheduler: Any) -> None:
    """A trio without what it needs is refused with words, and nothing is changed."""
    monkeypatch.delattr(scheduler, "_r")

    with pytest.raises(RuntimeError, match="cannot be seeded"), deterministic(1):
        pass
