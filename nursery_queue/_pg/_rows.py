"""Values of the domain to parameters of statements, and rows back to values."""

from __future__ import annotations

import datetime as dt
import json

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from nursery_queue._core._heartbeat import Beat, Late
from nursery_queue._core._model import (
    Attempt,
    CancelRequest,
    Claim,
    Claimed,
    Fence,
    Held,
    NewTask,
    Outcome,
    QueueStatus,
    Settlement,
    Spot,
    Stats,
    TaskStatus,
    UnknownTypeStats,
    WorkerInfo,
    WorkerStatus,
)
from nursery_queue._core._queue_changes import QueueChanges
from nursery_queue._core._rate import Rate
from nursery_queue._core._reasons import Reason, ReasonCode, Why
from nursery_queue._core._retry import RetryPolicy, waits
from nursery_queue._core._states import Event, State
from nursery_queue._core._tally import Way, counters_of


Row = tuple[Any, ...]
NamedRow = dict[str, Any]  # by column: where an answer is read seldom enough to be read by name
# In ASCII, which is the same in all client encodings: EUC_JP and SJIS write a yen sign as a byte
# that the server takes for a backslash, and LATIN1 lacks most characters
# (tests/producers/test_settings.py).
_encode = json.JSONEncoder(separators=(",", ":")).encode
TRIM_EVERY = 100  # attempts of a task; as in `settle.sql`
RATES = {"rate": "rate", "rate_per_key": "key_rate"}  # how their columns begin
INSTANTS = {"at", "since", "until"}  # of the details of reasons
IDS = range(-(2**63), 2**63)  # no task has any other


def enqueue_params(tasks: Sequence[NewTask]) -> dict[str, str]:
    """Return *tasks* as one text, which means the same in any session."""
    rows = [
        {
            "task_type": task.task_type,
            "params": task.params,
            "queue": task.queue,
            "priority": task.priority,
            "key": task.key,
            "run_at": None if task.run_at is None else task.run_at.isoformat(),
            "run_after": task.run_after,
            "max_attempts": task.max_attempts,
            "backoff": backoff_text(task.backoff),
            "timeout": None if task.timeout is None else str(task.timeout),  # may be infinity
            "keep_for": task.keep_for,
            "dedup_key": task.dedup_key,
            "dedup_for": task.dedup_for,
            "debounce_wait": task.debounce and task.debounce.wait,
            "debounce_max_wait": task.debounce and task.debounce.max_wait,
            "on_complete": task.on_complete,
            "context": task.context,
        }
        for task in tasks
    ]
    # What is left out is null there, too; most of it is, and need be neither sent nor read.
    return {"tasks": _encode([{k: v for k, v in row.items() if v is not None} for row in rows])}


def settle_params(settlements: Sequence[Settlement]) -> dict[str, Any]:
    """Return *settlements* as one array a column."""
    fences = [settlement.fence for settlement in settlements]
    states = [settlement.state for settlement in settlements]
    outcomes = [settlement.outcome for settlement in settlements]
    results = [settlement.result for settlement in settlements]
    # Mostly there are none: then psycopg need not look at each, and unnest() takes a null for them.
    errors = [settlement.error for settlement in settlements]
    errors = errors if any(errors) else []
    return {
        "task_ids": _plain([fence.task_id for fence in fences]),
        "epochs": _plain([fence.epoch for fence in fences]),
        "states": _plain([state.value for state in states]),
        "finals": _plain([state.is_final for state in states]),
        "attempts": _plain([settlement.attempt for settlement in settlements]),
        "losts": _plain([settlement.lost for settlement in settlements]),
        "delays": _plain([settlement.delay for settlement in settlements]),
        "keep_fors": _plain([settlement.keep_for for settlement in settlements]),
        "outcomes": _plain([outcome and outcome.value for outcome in outcomes]),
        "results": results if any(results) else None,
        "error_types": [error and error.type for error in errors],
        "error_messages": [error and error.message for error in errors],
        "error_tracebacks": [error and error.traceback for error in errors],
        "error_details": [error and error.details for error in errors],
        "on_completes": _plain([settlement.on_complete for settlement in settlements]),
    }


def are_plain_successes(settlements: Sequence[Settlement]) -> bool:
    """Whether `settle_successes.sql` does all that is to be done."""
    return all(
        each.event is Event.SUCCEED
        and each.outcome is Outcome.SUCCEEDED
        and each.error is None
        and not each.on_complete
        and each.keep_for > 0
        and each.fence.epoch % TRIM_EVERY != 0
        for each in settlements
    )


def success_params(settlements: Sequence[Settlement]) -> dict[str, Any]:
    """Return successes as one array a column."""
    results = [settlement.result for settlement in settlements]
    return {
        "task_ids": _plain([settlement.fence.task_id for settlement in settlements]),
        "epochs": _plain([settlement.fence.epoch for settlement in settlements]),
        "attempts": _plain([settlement.attempt for settlement in settlements]),
        "losts": _plain([settlement.lost for settlement in settlements]),
        "keep_fors": _plain([settlement.keep_for for settlement in settlements]),
        "results": results if any(results) else None,
    }


def left_alone(settlements: Sequence[Settlement], rows: Sequence[Row]) -> Sequence[Settlement]:
    """Return those that `settle_successes.sql` has not applied; *rows* is its answer."""
    ((fences, *_),) = rows
    if not fences:
        return ()
    left = {Fence(task_id, epoch) for task_id, epoch in fences}
    return [each for each in settlements if each.fence in left]


def fence_params(fences: Collection[Fence]) -> dict[str, list[int]]:
    """Return *fences* as one array a column."""
    return {
        "task_ids": [fence.task_id for fence in fences],
        "epochs": [fence.epoch for fence in fences],
    }


def register_params(worker: WorkerInfo) -> dict[str, Any]:
    """Return *worker* as a row, and its declarations as one array a column."""
    return {
        "id": worker.id,
        "name": worker.name,
        "host": worker.host,
        "pid": worker.pid,
        "queues": None if worker.queues is None else list(worker.queues),
        "task_types": list(worker.task_types),
        "lease": worker.lease,
        "heartbeat": worker.heartbeat,
        "names": [each.name for each in worker.declared],
        "type_queues": [each.queue for each in worker.declared],
        "priorities": [each.priority for each in worker.declared],
        "keep_fors": [float(each.keep_for) for each in worker.declared],
        "on_completes": [each.on_complete for each in worker.declared],
        "key_parameters": [each.key_parameter for each in worker.declared],
        "key_defaults": [each.key_default for each in worker.declared],
        "max_lost": json.dumps(dict(worker.max_lost)),
        "app": worker.app,
        "schedules": list(worker.schedules),
    }


def queue_text(changes: QueueChanges) -> str:
    """Return what is to be set of a queue, as JSON by column."""
    return _encode(_queue_columns(changes))


def queues_text(declared: Mapping[str, QueueChanges]) -> str:
    """Return what is declared of queues, as JSON by queue and column."""
    return _encode({name: _queue_columns(changes) for name, changes in declared.items()})


def _queue_columns(changes: QueueChanges) -> dict[str, Any]:
    columns: dict[str, Any] = {**changes}
    for field, prefix in RATES.items():
        if field in columns:
            rate = columns.pop(field)
            for part in ("count", "per", "burst"):
                columns[f"{prefix}_{part}"] = None if rate is None else getattr(rate, part)
    return columns


def queue_status(row: NamedRow) -> QueueStatus:
    """Read a row of `queues.sql`."""
    for field, prefix in RATES.items():
        count, per, burst = (row.pop(f"{prefix}_{part}") for part in ("count", "per", "burst"))
        row[field] = None if count is None else Rate(count, per=per, burst=burst)
    return QueueStatus(**row)


def beat(rows: Sequence[Row]) -> Beat:
    """Read the answer of `heartbeat.sql`."""
    if not rows:
        return Beat(registered=False)
    ((requests, late),) = rows
    return Beat(
        registered=True,
        cancel_requests=[
            CancelRequest(fence=Fence(task_id, epoch), interrupt=interrupt)
            for task_id, epoch, interrupt in requests
        ],
        late=[
            Late(id=UUID(id_), heartbeat_at=heartbeat_at, dead_after=float(dead_after))
            for id_, heartbeat_at, dead_after in late
        ],
    )


def claimed(rows: Iterable[Row], at_once: int | None) -> Claimed:
    """Read the answer of `claim.sql`: a row for each task, and one for all together."""
    *tasks, last = rows
    claims: list[Claim] = []
    for row in tasks:
        task_id, epoch, attempt, lost, lag, task_type, queue, params = row[8:16]
        max_attempts, backoff, timeout, keep_for, *flags = row[16:]
        on_complete, completes, suspect, limited, tick = flags
        claims.append(
            Claim(
                fence=Fence(task_id, epoch),
                attempt=attempt,
                lost=lost,
                task_type=task_type,
                queue=queue,
                params=params,
                max_attempts=max_attempts,
                backoff=None if backoff is None else _backoff(backoff),
                timeout=timeout,
                keep_for=keep_for,
                lag=lag,
                on_complete=on_complete,
                completes=completes,
                started=at_once is None or len(claims) < at_once,  # as the statement notes it
                suspect=suspect,
                limited=limited,
                tick=None if tick is None else tick.astimezone(dt.UTC),
            )
        )
    next_due, contended, held_back, unknown_types, more, *resume = last[:8]
    return Claimed(
        claims=claims,
        next_due=next_due,
        contended=contended,
        held_back=held_back,
        unknown_types=unknown_types,
        more=more,
        resume=None if resume[0] is None else Spot(*resume),
    )


def held(row: NamedRow) -> Held:
    """Read a row of `held.sql` or `take_abandoned.sql`."""
    fence = Fence(row.pop("task_id"), row.pop("epoch"))
    return Held(fence=fence, **row)


def task_status(row: NamedRow) -> TaskStatus:
    """Read a row of `status.sql` or `list_tasks.sql`."""
    row["state"] = State(row["state"])
    return TaskStatus(**row)


def why(answer: Mapping[str, Any]) -> Why:
    """Read the answer of the function `why`."""
    state = answer["state"]
    return Why(
        None if state is None else State(state),
        tuple(_reason(**stored) for stored in answer["reasons"]),
    )


def _reason(*, code: str, text: str, **details: Any) -> Reason:
    for name in INSTANTS & details.keys():
        details[name] = dt.datetime.fromisoformat(details[name]).astimezone(dt.UTC)
    return Reason(ReasonCode(code), text, details)


def attempt(row: NamedRow) -> Attempt:
    """Read a row of `attempts.sql`."""
    row["outcome"] = Outcome(row["outcome"])
    return Attempt(**row)


def stats(
    tasks: Iterable[NamedRow],
    attempts: Iterable[NamedRow],
    unknown: Iterable[NamedRow],
    workers: Iterable[NamedRow],
) -> Stats:
    """Read the answers of `count_tasks.sql`, `count_attempts.sql` and so on."""
    queues: dict[str, dict[State, int]] = defaultdict(dict)
    due: Counter[str] = Counter()
    for row in tasks:
        queues[row["queue"]][State(row["state"])] = row["count"]
        due[row["queue"]] += row["due"]
    ways: dict[str, dict[Way, int]] = defaultdict(dict)
    for row in attempts:
        ways[row["queue"]][Outcome(row["outcome"]), row["final"]] = row["count"]
    return Stats(
        queues=queues,
        workers=[WorkerStatus(**row) for row in workers],
        unknown_task_types={row.pop("task_type"): UnknownTypeStats(**row) for row in unknown},
        counters={
            queue: counters_of(
                ways[queue], running=states.get(State.RUNNING, 0), backlog=due[queue]
            )
            for queue, states in queues.items()
        },
    )


def _backoff(stored: Mapping[str, Any]) -> RetryPolicy:
    """Read a backoff that plain SQL may have written, as far as the table's check lets it in."""
    names = ("initial", "maximum", "factor", "jitter")
    numbers: dict[str, Any] = {name: float(stored[name]) for name in names if name in stored}
    return RetryPolicy(**numbers)


def _plain(values: Iterable[float | str | None]) -> str:
    """Return numbers, booleans and words of our own as PostgreSQL writes an array of them.

    psycopg looks in each for characters to be quoted: 1 us a value, 5 us a settlement.
    """
    texts = ["NULL" if value is None else str(value) for value in values]
    return "{" + ",".join(texts) + "}"


def backoff_text(policy: RetryPolicy | None) -> str | None:
    """Return *policy* as a task's row has it."""
    return None if policy is None else json.dumps(waits(policy))
