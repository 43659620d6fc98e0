"""The tasks of soak.py, for `nursery-queue worker`, and the ledger in which they say that they ran.

The ledger is a file that the worker and its parent both map: a number of 8 bytes, which counts the
tasks that are done, and then a byte for each task, which counts its attempts. Most rows are pruned
long before the end, so the tables could not tell.
"""

from __future__ import annotations

import mmap
import os

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs

import nursery_queue as nq


LEDGER: Final = "SOAK_LEDGER"  # environment variables
KEEP_FOR: Final = "SOAK_KEEP_FOR"
TURN: Final = 20  # after so many tasks the kinds repeat
SAMPLE: Final = 1009  # of so many tasks one is kept to the end; a prime, so that it is of any kind
KEPT: Final = 86_400.0  # seconds

app: Final = nq.App()
_keep_for: Final = float(os.environ.get(KEEP_FOR, "30"))


@attrs.frozen(eq=False)
class Ledger:
    """What has run, by the number of the task."""

    _map: mmap.mmap
    _done: memoryview

    @classmethod
    def of(cls, path: Path) -> Ledger:
        """Map a file that is there."""
        with path.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        return cls(mapped, memoryview(mapped)[:8].cast("Q"))

    @classmethod
    def create(cls, path: Path, tasks: int) -> Ledger:
        """Make one, with nothing in it."""
        path.write_bytes(bytes(8 + tasks))
        return cls.of(path)

    @property
    def done(self) -> int:
        """How many have done what they are to do."""
        done: int = self._done[0]
        return done

    def starts(self, number: int) -> None:
        """Note one more attempt."""
        self._map[8 + number] += 1

    def ends(self) -> None:
        """Note one more that is done."""
        self._done[0] += 1

    def attempts(self) -> bytes:
        """Return how many there were, for each task."""
        return self._map[8:]


# Where the module is imported to enqueue, there is none, and no handler runs.
_path: Final = os.environ.get(LEDGER)
_ledger: Final = Ledger.of(Path(_path)) if _path else None


def _noted(number: int) -> None:
    assert _ledger is not None
    _ledger.starts(number)
    _ledger.ends()


@app.task(name="nothing", keep_for=_keep_for)
async def nothing(i: int) -> None:
    """Do nothing."""
    _noted(i)


@app.task(name="forgotten", keep_for=0)
async def forgotten(i: int) -> None:
    """Do nothing, and leave nothing."""
    _noted(i)


@app.task(name="answer", keep_for=_keep_for)
async def answer(i: int) -> dict[str, int]:
    """Have a result."""
    _noted(i)
    return {"number": i}


@app.task(name="keyed", keep_for=_keep_for)
async def keyed(i: int) -> None:
    """Do nothing; it was enqueued with a dedup key."""
    _noted(i)


@app.task(
    name="flaky",
    keep_for=_keep_for,
    retry=nq.RetryPolicy(max_attempts=2, initial=1.0),
)
async def flaky(ctx: nq.TaskContext, i: int) -> None:
    """Fail once."""
    if ctx.attempt > 1:
        _noted(i)
        return
    assert _ledger is not None
    _ledger.starts(i)
    raise ValueError("the first attempt fails")


_KINDS: Final[dict[int, nq.TaskType[[int], Any]]] = {
    12: flaky,
    13: forgotten,
    14: forgotten,
    15: answer,
    16: answer,
}
_KEYED: Final = (17, 18)


def is_keyed(number: int) -> bool:
    """Say whether this task has a dedup key, and so cannot come by COPY."""
    return number % TURN in _KEYED


def is_flaky(number: int) -> bool:
    """Say whether this task fails once."""
    return _KINDS.get(number % TURN) is flaky


def result(number: int) -> dict[str, int] | None:
    """Return what this task's result is."""
    return {"number": number} if _KINDS.get(number % TURN) is answer else None


def is_sample(number: int) -> bool:
    """Say whether this task is kept to the end."""
    return number % SAMPLE == 0 and _KINDS.get(number % TURN) is not forgotten


def request(number: int) -> nq.TaskRequest:
    """Return the task with this number: most of them do nothing."""
    kind = keyed if is_keyed(number) else _KINDS.get(number % TURN, nothing)
    asked = kind.bind(number)
    if is_keyed(number):
        asked = asked.options(dedup_key=f"soak {number}")
    return asked.options(keep_for=KEPT) if is_sample(number) else asked


def requests(numbers: Sequence[int]) -> tuple[list[nq.TaskRequest], list[nq.TaskRequest]]:
    """Return those that COPY can store, and those with a dedup key, each of these twice."""
    copied = [request(number) for number in numbers if not is_keyed(number)]
    once = [request(number) for number in numbers if is_keyed(number)]
    return copied, [each for each in once for _ in range(2)]
