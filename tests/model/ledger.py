"""What has to hold after every step, whatever it was."""

from __future__ import annotations

import datetime as dt

from collections import Counter
from collections.abc import Mapping
from typing import Any

import attrs

from nursery_queue._core._model import NewTask
from nursery_queue._core._rate import Rate
from tests.model.picture import EMPTY, FINAL, Picture, Task
from tests.model.pools import Pool
from tests.support.flow_steps import most_in_a_window


Lane = tuple[str, str | None]
GONE = "gone"
WAITING = frozenset({"ready", "scheduled", "parked"})
# From one place to the next, within one step; not by whatever step, see `AFTER_THE_END`.
MOVES = {
    "scheduled": {"ready", "cancelled", GONE},
    "ready": {"running", "parked", "cancelled", GONE},
    "parked": {"ready", "cancelled", GONE},
    "running": {"running", "ready", "scheduled", "succeeded", "failed", "cancelled", GONE},
    "succeeded": {GONE},
    "failed": {"ready", GONE},
    "cancelled": {"ready", GONE},
}
# What may happen to a task that has ended, and by which verb alone.
AFTER_THE_END = {"ready": "retry", GONE: "prune"}


@attrs.frozen(kw_only=True)
class Done:
    """What a step should have done, by what was known before and by its answer.

    *to*: where tasks are now; nothing else may have changed. *born*: where new tasks are,
    other than those that tell how another one ended. *logged*: of which tasks an attempt was
    closed, with an entry in the log. *used*: how many attempts are used up, and how many lost,
    after an attempt. *due*: from when on tasks may start, if that is new. *replaced*: what is asked
    of tasks instead. *overtaken*: which have lost their dedup key to a new one.
    """

    verb: str
    to: Mapping[int, str] = attrs.field(factory=dict[int, str])
    born: Mapping[int, str] = attrs.field(factory=dict[int, str])
    telling: Mapping[int, Any] = attrs.field(factory=dict[int, Any])  # on_complete of the new ones
    logged: frozenset[int] = frozenset()
    used: Mapping[int, tuple[int, int]] = attrs.field(factory=dict[int, tuple[int, int]])
    due: Mapping[int, dt.datetime] = attrs.field(factory=dict[int, dt.datetime])
    replaced: Mapping[int, NewTask] = attrs.field(factory=dict[int, NewTask])
    overtaken: frozenset[int] = frozenset()


@attrs.define(eq=False)
class Ledger:
    """Follows every task from birth to oblivion, by looking at one picture after the other."""

    picture: Picture = EMPTY
    stored: int = 0
    forgotten: int = 0
    ends: Counter[int] = attrs.field(factory=Counter[int])  # of tasks that asked to be told of
    told: Counter[int] = attrs.field(factory=Counter[int])
    due: dict[int, dt.datetime] = attrs.field(factory=dict[int, dt.datetime])
    # When tasks have started since the rate is as it is: by queue and key (None: all of the queue).
    starts: dict[Lane, list[dt.datetime]] = attrs.field(factory=dict[Lane, "list[dt.datetime]"])
    keyless: set[int] = attrs.field(factory=set[int])  # live tasks that have lost their dedup key

    def check(self, done: Done, after: Picture, now: dt.datetime) -> None:
        """Hold a step, and what is there after it, to the rules."""
        before, self.picture = self.picture, after
        self._check_moves(done, before, after)
        self._check_births(done, before, after, now)
        for number, place in done.to.items():
            if place != GONE:
                _check_change(done, number, before.tasks[number], after.tasks[number], now)
        if done.verb == "claim":
            self._check_starts(done, before, after, now)
            self._check_rates(done, after, now)
        self._forget_starts(before, after)
        self.due.update(done.due)
        self._check_sums(after)
        self.keyless |= done.overtaken
        self.keyless = {
            each for each in self.keyless if each in after.tasks and after.tasks[each].live
        }
        self._check_keys(after)

    def _check_moves(self, done: Done, before: Picture, after: Picture) -> None:
        for number, task in before.tasks.items():
            found = after.tasks.get(number)
            if number not in done.to:
                assert found == task, f"{done.verb} should not have touched task {number}:\n{found}"
                continue
            place = GONE if found is None else found.place
            assert place == done.to[number], f"task {number} is {place}, not {done.to[number]}"
            moves = MOVES[task.place] | ({place} if number in done.replaced else set[str]())
            assert place in moves, f"task {number}: {task.place} to {place}"
            assert task.live or done.verb == AFTER_THE_END[place]

    def _check_births(self, done: Done, before: Picture, after: Picture, now: dt.datetime) -> None:
        """See that there are the new tasks that were asked for, and one for each end to tell."""
        asking: dict[int, Any] = {
            number: before.tasks[number].asked.on_complete
            for number, place in done.to.items()
            if before.tasks[number].live and (place in FINAL or place == GONE)
        }
        asking |= {
            number: on_complete
            for number, on_complete in done.telling.items()
            if done.born[number] in FINAL or done.born[number] == GONE
        }
        ends = [number for number, on_complete in asking.items() if on_complete is not None]
        self.ends.update(ends)
        new = {number: after.tasks[number] for number in after.tasks.keys() - before.tasks.keys()}
        for number, place in done.born.items():
            found = new.pop(number, None)
            here = GONE if found is None else found.place
            assert here == place, f"new task {number} is {here}, not {place}"
        told = [task.asked.completes for task in new.values()]
        assert sorted(told, key=str) == sorted(ends, key=str), f"{ends} have ended, {told} told"
        self.told.update(number for number in told if number is not None)
        for number, task in new.items():
            wait = asking[task.asked.completes or 0].get("run_after", 0)
            self.due[number] = now + dt.timedelta(seconds=wait)
        self.stored += len(done.born) + len(ends)
        self.forgotten += [*done.to.values(), *done.born.values()].count(GONE)

    def _check_starts(self, done: Done, before: Picture, after: Picture, now: dt.datetime) -> None:
        for number in done.to:
            assert self.due[number] <= now, f"task {number} is not due before {self.due[number]}"
        was, running = _running(before), _running(after)
        for lane in {lane for number in done.to for lane in lanes(after.tasks[number])}:
            queue, key = lane
            pool = after.pools.get(queue, Pool())
            assert not pool.paused, f"{queue} is paused"
            most = pool.max_running if key is None else pool.max_running_per_key
            assert most is None or running[lane] <= most, (
                f"{running[lane]} of {lane} run, {was[lane]} did before; the limit is {most}"
            )

    def _check_rates(self, done: Done, after: Picture, now: dt.datetime) -> None:
        for number in done.to:
            for lane in lanes(after.tasks[number]):
                self.starts.setdefault(lane, []).append(now)
        for lane, starts in self.starts.items():
            if (rate := _rate(after, lane)) is not None:
                most = most_in_a_window(starts, rate.per)
                assert most <= rate.count + rate.burst, f"{most} of {lane} have started in {rate}"

    def _forget_starts(self, before: Picture, after: Picture) -> None:
        """Forget the starts of lanes whose rate has just been set."""
        for lane in list(self.starts):
            if _rate(before, lane) != _rate(after, lane):
                del self.starts[lane]

    def _check_keys(self, after: Picture) -> None:
        holders = [
            (task.asked.dedup_key, number)
            for number, task in after.tasks.items()
            if task.live and number not in self.keyless
        ]
        keyed = [(key, number) for key, number in holders if key is not None]
        assert len(dict(keyed)) == len(keyed), f"two live tasks have one key: {keyed}"
        assert dict(keyed) == after.keys

    def _check_sums(self, after: Picture) -> None:
        assert len(after.tasks) == self.stored - self.forgotten
        assert self.told == self.ends


def _check_change(done: Done, number: int, was: Task, task: Task, now: dt.datetime) -> None:
    """Hold one task that has moved to the rules: its counters, and its log."""
    old, new = was.position, task.position
    if (replaced := done.replaced.get(number)) is None:
        expected, run_at = was.asked, was.run_at
    else:
        names = ("task_type", "queue", "priority", "key")
        changes = {name: getattr(replaced, name) for name in names}
        expected, run_at = attrs.evolve(was.asked, **changes), done.due[number]
    assert (task.asked, task.created_at, task.run_at) == (expected, was.created_at, run_at)
    entries = task.log[len(was.log) :]
    assert task.log[: len(was.log)] == was.log
    assert len(entries) == (number in done.logged), f"task {number}: {entries}"
    for entry in entries:
        attempt = (old.worker_id, old.started_at, now)
        assert (entry.worker_id, entry.started_at, entry.finished_at) == attempt
    starts = new.place == "running" != old.place
    assert new.epoch == old.epoch + starts
    if starts:
        assert (new.attempt, new.lost, new.started_at) == (old.attempt + 1, old.lost, now)
    elif done.verb == "retry":
        assert (new.attempt, new.lost) == (0, 0)
    elif old.place == new.place == "running":
        interrupts = new.cancel_interrupts
        assert new == attrs.evolve(old, cancel_requested=True, cancel_interrupts=interrupts)
    elif old.place != "running":
        assert (new.attempt, new.lost) == (old.attempt, old.lost)
    else:
        assert (new.attempt, new.lost) == done.used[number]
    assert (new.finished_at == now) if new.place in FINAL else new.finished_at is None
    if number in done.due:
        assert new.due_at == done.due[number]


def lanes(task: Task) -> set[Lane]:
    """Return what has limits that a task counts against: its queue, and its key in that."""
    return {(task.asked.queue, None), (task.asked.queue, task.asked.key)}


def _rate(picture: Picture, lane: Lane) -> Rate | None:
    pool = picture.pools.get(lane[0], Pool())
    return pool.rate if lane[1] is None else pool.rate_per_key


def _running(picture: Picture) -> Counter[Lane]:
    running = [task for task in picture.tasks.values() if task.place == "running"]
    return Counter(lane for task in running for lane in lanes(task))
