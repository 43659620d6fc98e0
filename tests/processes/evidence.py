"""What the tables and the handlers' trace say about a fleet's work, and whether they agree."""

from __future__ import annotations

import datetime as dt
import itertools
import math

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path
from typing import Final
from uuid import UUID

import attrs
import psycopg

from psycopg.rows import class_row


LOG: Final = """
    select attempt.task_id, task_type, attempt.epoch, outcome, attempt.worker_id,
           attempt.started_at, attempt.finished_at, attempt.error_type,
           finished.attempt as counted, finished.lost
      from nursery_queue.attempt
      join nursery_queue.task on task.id = task_id
      join nursery_queue.finished using (task_id)
     order by task_id, epoch
"""
NEVER: Final = {  # queries that find nothing, whenever one looks
    "running twice": """
        select task_id from nursery_queue.task_attempt where outcome = 'running'
         group by task_id having count(*) > 1
    """,
    "not in one place": """
        select id from nursery_queue.task
         where (select count(*) from nursery_queue.ready where task_id = id)
             + (select count(*) from nursery_queue.parked where task_id = id)
             + (select count(*) from nursery_queue.scheduled where task_id = id)
             + (select count(*) from nursery_queue.running where task_id = id)
             + (select count(*) from nursery_queue.finished where task_id = id) <> 1
    """,
    "numbers with gaps": """
        select task_id from nursery_queue.task_attempt group by task_id
        having (min(number), max(number), count(distinct number)) <> (1, count(*), count(*))
    """,
}


NOTED_WITHIN = 3.0  # seconds, more than a heartbeat of any worker that is killed here


@attrs.frozen
class Entry:
    """A closed attempt, as the log has it, with the end of its task."""

    task_id: int
    task_type: str
    epoch: int
    outcome: str
    worker_id: UUID
    started_at: dt.datetime
    finished_at: dt.datetime
    error_type: str | None
    counted: int
    lost: int

    @property
    def key(self) -> tuple[int, int, UUID]:
        return self.task_id, self.epoch, self.worker_id


@attrs.frozen
class Execution:
    """A call of a handler, as it has traced itself; times are monotonic."""

    task_id: int
    epoch: int
    worker_id: UUID
    pid: int
    began: float
    ended: float  # or when its process was killed; math.inf: it has not ended
    killed_at: float  # its process, then or later; math.inf: it was not

    @property
    def key(self) -> tuple[int, int, UUID]:
        return self.task_id, self.epoch, self.worker_id


def read_log(dsn: str) -> list[Entry]:
    """Read the log of all tasks that have ended."""
    with psycopg.connect(dsn) as connection:
        return connection.cursor(row_factory=class_row(Entry)).execute(LOG).fetchall()


def read_trace(path: Path, killed: Mapping[int, float]) -> list[Execution]:
    """Read who called which handler; *killed*: when which process was killed, at the earliest."""
    lines = [line.split() for line in path.read_text().splitlines()]
    ends = {tuple(fields[1:5]): float(fields[5]) for fields in lines if fields[0] == "-"}
    return [
        Execution(
            task_id=int(fields[1]),
            epoch=int(fields[2]),
            worker_id=UUID(fields[3]),
            pid=int(fields[4]),
            began=float(fields[5]),
            ended=ends.get(tuple(fields[1:5]), killed.get(int(fields[4]), math.inf)),
            killed_at=killed.get(int(fields[4]), math.inf),
        )
        for fields in lines
        if fields[0] == "+"
    ]


def contradictions(log: Sequence[Entry], trace: Sequence[Execution]) -> list[str]:
    """Say where the log and the trace do not agree, or not with themselves."""
    return [*_unheard_of(log, trace), *_at_once(trace), *_in_disorder(log)]


def most_at_once(trace: Sequence[Execution]) -> int:
    """Return how many handlers have run at once at most."""
    edges = [(each.began, 1) for each in trace] + [(each.ended, -1) for each in trace]
    # At the same instant, those that end go before those that begin.
    return max(itertools.accumulate(change for _, change in sorted(edges)), default=0)


def _unheard_of(log: Sequence[Entry], trace: Sequence[Execution]) -> Iterator[str]:
    traced = Counter(execution.key for execution in trace)
    known = {entry.key for entry in log}
    # A handler that was claimed ahead, of a worker that was killed before it had stored the outcome
    # and before a heartbeat told of the start.
    unheard = {one.key for one in trace if one.killed_at - one.began < NOTED_WITHIN}
    yield from (f"the log does not know of {key}" for key in traced.keys() - known - unheard)
    yield from (f"executed {n} times under one claim: {key}" for key, n in traced.items() if n > 1)
    # What was lost may have been waiting in its worker's hands.
    started = {entry.key for entry in log if entry.outcome != "lost"}
    yield from (f"nobody has executed {key}" for key in started - traced.keys())


def _at_once(trace: Sequence[Execution]) -> Iterator[str]:
    by_time = sorted(trace, key=attrgetter("task_id", "began"))
    for one, other in pairwise(by_time):
        if one.task_id == other.task_id and other.began < one.ended:
            yield f"executed by two at once: {one}, {other}"


def _in_disorder(log: Sequence[Entry]) -> Iterator[str]:
    for task_id, group in groupby(log, attrgetter("task_id")):
        attempts = list(group)
        if any(other.started_at < one.finished_at for one, other in pairwise(attempts)):
            yield f"attempts of task {task_id} overlap in the log"
        last, outcomes = attempts[-1], Counter(entry.outcome for entry in attempts)
        if last.outcome != "succeeded" or outcomes["succeeded"] != 1:
            yield f"task {task_id} ended with {outcomes}, the last {last.outcome}"
        counted = outcomes["succeeded"] + outcomes["failed"]
        if (last.lost, last.counted) != (outcomes["lost"], counted):
            yield f"task {task_id} says {last.lost} losses, attempt {last.counted}; {outcomes}"
