"""Schedules, and workers that die without a word: every tick is to have its task, once, in time.

    python -m tests.support.schedule_drill [--schedules 10000] [--days 10] [--workers 3] [--seed 1]

In the root of a clone; by default it takes about an hour. On a PostgreSQL of its own, in virtual
time. A worker dies as by SIGKILL: from one moment on nothing of it reaches the database any more,
and its row and its claims stay. At times all of them are dead, and new ones catch up.
"""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import random
import sys
import tempfile

from collections import Counter
from collections.abc import Sequence

import attrs
import psycopg
import trio

import nursery_queue as nq

from nursery_queue._core._when import When
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore


LEASE, HEARTBEAT = 300.0, 60.0
IN_TIME = dt.timedelta(seconds=1)
TICKS = """
    select schedule, tick, created_at from nursery_queue.task where schedule is not null
"""


@attrs.define(eq=False)
class Drill:
    """Schedules, workers that are killed, and the instants at which one was at work."""

    dsn: str
    clock: VirtualTime
    schedules: int
    seconds: float
    workers: int
    rng: random.Random
    rules: dict[str, When] = attrs.field(factory=dict[str, "When"], init=False)
    began: dict[str, dt.datetime] = attrs.field(factory=dict[str, dt.datetime], init=False)
    # From when to when a worker was at work that was not killed in between.
    at_work: list[tuple[dt.datetime, dt.datetime]] = attrs.field(
        factory=list["tuple[dt.datetime, dt.datetime]"], init=False
    )
    kills: int = attrs.field(default=0, init=False)

    def app(self) -> nq.App:
        app = nq.App()

        @app.task(name="noop", keep_for=dt.timedelta(days=400))
        async def noop() -> None:
            await trio.lowlevel.checkpoint()

        for name, when in self.rules.items():
            app.schedule(name, when, noop, misfire="all")
        return app

    def draw(self) -> None:
        zones = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")
        for number in range(self.schedules):
            minute, hour = self.rng.randrange(60), self.rng.randrange(24)
            rules: Sequence[When] = (
                nq.Cron(f"{minute} {hour} * * *", self.rng.choice(zones)),
                nq.Cron(f"{minute} */6 * * *", self.rng.choice(zones)),
                nq.Every(self.rng.choice([1800, 3600, 7200, 10_000.5])),
                nq.Cron("0 * * * *"),
            )
            self.rules[f"s{number}"] = self.rng.choices(rules, weights=(4, 4, 2, 1))[0]

    async def run(self) -> None:
        self.draw()
        app = self.app()
        with trio.move_on_after(self.seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(self.workers):
                    nursery.start_soon(self._live_and_die, app)
                async with nq.connect(self.dsn) as client:
                    while not self.began:
                        await trio.sleep(1)
                        found = await client.schedules()
                        self.began = {each.name: self.clock.now() for each in found}
                await trio.sleep_forever()
        async with nq.connect(self.dsn) as client:  # a last one catches up, and stays
            await nq.Worker(app, client, lease=LEASE, heartbeat=HEARTBEAT).run_until_idle()

    async def _live_and_die(self, app: nq.App) -> None:
        while True:
            store = FlakyStore(inner=PostgresStore(self.dsn))
            worker = nq.Worker(
                app, nq.Client(store), lease=LEASE, heartbeat=HEARTBEAT, poll_interval=0
            )
            since: dt.datetime | None = None
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(worker.run)
                    since = self.clock.now()
                    await trio.sleep(self.rng.expovariate(1 / (self.seconds / 12)))
                    self.kills += 1
                    store.break_down()
                    nursery.cancel_scope.cancel("killed")
            finally:
                if since is not None:
                    self.at_work.append((since, self.clock.now()))
                store.break_down()
                with trio.CancelScope(shield=True):
                    await store.inner.aclose()
            await trio.sleep(self.rng.expovariate(1 / (self.seconds / 30)))

    def verdict(self) -> str:
        """Say what was found; raise `AssertionError` if a tick had no task, two, or a late one."""
        with psycopg.connect(self.dsn) as session:
            stored = session.execute(TICKS).fetchall()
            row = session.execute("select min(since), max(since) from nursery_queue.schedule")
            (first, _last) = row.fetchone() or (None, None)
        assert first is not None
        had = Counter((name, tick) for name, tick, _ in stored)
        twice = [each for each, times in had.items() if times > 1]
        assert not twice, f"two tasks for {twice[:5]}"
        late: list[tuple[str, dt.datetime, dt.datetime]] = []
        for name, tick, created_at in stored:
            on_duty = any(a <= tick and tick + IN_TIME <= b for a, b in self.at_work)
            if on_duty and created_at - tick > IN_TIME:
                late.append((name, tick, created_at))
        assert not late, f"late: {late[:5]}"
        ticks: dict[str, list[dt.datetime]] = {name: [] for name in self.rules}
        for name, tick in had:
            ticks[name].append(tick)
        for name, when in self.rules.items():
            found = sorted(ticks[name])
            expected = nq.preview(when, len(found) + 2, self.began[name])
            # All that passed, and none that is to come.
            assert found == expected[: len(found)], (name, when)
            assert expected[len(found)] > self.clock.now() - dt.timedelta(seconds=60), (name, when)
        return (
            f"{len(self.rules)} schedules, {self.kills} workers killed,"
            f" {len(had)} ticks, each with one task; none late on living workers"
        )


def main() -> None:
    """Drill as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--days", type=float, default=10)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    logging.getLogger("nursery_queue").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, nq.embedded(folder) as server:
        nq_dsn = server.dsn
        clock = VirtualTime()
        rng = random.Random(asked.seed)
        seconds = asked.days * 86_400
        drill = Drill(nq_dsn, clock, asked.schedules, seconds, asked.workers, rng)

        async def run() -> None:
            await nq.migrate(nq_dsn)
            await drill.run()

        trio.run(run, clock=clock)
        sys.stdout.write(f"{drill.verdict()}\n")


if __name__ == "__main__":
    main()
