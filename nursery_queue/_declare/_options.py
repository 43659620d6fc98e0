"""Options of an enqueue, which override those of the task type: the same keywords everywhere."""

from __future__ import annotations

import datetime as dt
import math

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict
from uuid import UUID

import attrs

from nursery_queue._core._checks import duration, instant, label, limit, whole
from nursery_queue._core._debounce import Debounce
from nursery_queue._core._keys import as_key
from nursery_queue._core._on_complete import as_on_complete
from nursery_queue._core._retry import ONCE, RetryPolicy
from nursery_queue._json._codec import dump_context


if TYPE_CHECKING:
    from ._task_type import TaskType

LOWEST_PRIORITY = -(2**31)

Retry = RetryPolicy | Literal[False] | None
Seconds = float | dt.timedelta
Key = str | int | UUID | dt.date | None


class Options(TypedDict, total=False):
    """The keywords of `TaskType.options` and `TaskRequest.options`.

    Attributes:
        queue: The queue's name.
        priority: Higher goes first.
        key: What divides the queue, such as a customer: limits and fairness hold for each key.
            Text of at most 200 bytes, or a number, a UUID or a date; None: none.
        run_at: Not before this instant; timezone-aware.
        run_after: Not before so many seconds from the enqueue, by the database's clock.
        max_attempts: Attempts in all, at least 1.
        retry: The whole retry policy; None or False: one attempt.
        timeout: Seconds an attempt may take; None: no limit.
        keep_for: Seconds the finished task is kept; 0: not at all.
        dedup_key: Unique among live tasks: a second enqueue returns the first one's task.
        dedup_for: Seconds from the enqueue for which the dedup key stays taken at least, also
            when the task has ended, was cancelled or pruned.
        debounce: Replace the waiting task of the dedup key, and wait anew; see `Debounce`.
        on_complete: The task type, or its name, that is told how the task ended; None: none.
        context: What it is told besides: anything that can be written as JSON.
    """

    queue: str
    priority: int
    key: Key
    run_at: dt.datetime | None
    run_after: Seconds | None
    max_attempts: int | None
    retry: Retry
    timeout: Seconds | None
    keep_for: Seconds
    dedup_key: str | None
    dedup_for: Seconds | None
    debounce: Debounce | None
    on_complete: TaskType[..., Any] | str | None
    context: Any


def as_retry(value: Any) -> RetryPolicy:
    """Return *value* as a policy; None and False mean one attempt."""
    if value is None or value is False:
        return ONCE
    if not isinstance(value, RetryPolicy):
        raise TypeError(f"retry must be a RetryPolicy, None or False, not {value!r}")
    return value


def as_timeout(value: Any) -> float:
    """Return *value* in seconds; None means no limit, which is infinity."""
    return math.inf if value is None else limit(value, "timeout", positive=True)


def as_priority(value: Any) -> int:
    """Return *value*, a priority that fits the column."""
    return whole(value, "priority", minimum=LOWEST_PRIORITY)


def as_queue(value: Any) -> str:
    """Return *value*, a queue's name."""
    return label(value, "queue")


def as_keep_for(value: Any) -> float:
    """Return *value* in seconds."""
    return duration(value, "keep_for")


def as_max_lost(value: Any) -> int:
    """Return *value*, with how many losses a task fails."""
    return whole(value, "max_lost", minimum=1)


def as_key_option(value: Any) -> str | Literal[False]:
    """Return *value*, a key; False for None: none, whatever is declared."""
    return as_key(value) or False


def as_dedup_key(value: Any) -> str:
    """Return *value*, a key that an index takes."""
    if not isinstance(value, str):
        raise TypeError(f"dedup_key must be a string, not {value!r}")
    if not 1 <= len(value) <= 255 or not value.isprintable():
        raise ValueError(f"dedup_key must be 1 to 255 printable characters, not {value!r}")
    return value


def as_dedup_for(value: Any) -> float:
    """Return *value* in seconds."""
    return duration(value, "dedup_for", positive=True)


def as_debounce(value: Any) -> Debounce:
    """Return *value*, a `Debounce`."""
    if not isinstance(value, Debounce):
        raise TypeError(f"debounce must be a Debounce, not {value!r}: write nq.Debounce(...)")
    return value


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "queue": as_queue,
    "priority": as_priority,
    "run_at": lambda value: instant(value, "run_at"),
    "run_after": lambda value: duration(value, "run_after"),
    "max_attempts": lambda value: whole(value, "max_attempts", minimum=1),
    "retry": as_retry,
    "timeout": as_timeout,
    "keep_for": as_keep_for,
    "key": as_key_option,
    "dedup_key": as_dedup_key,
    "dedup_for": as_dedup_for,
    "debounce": as_debounce,
    "on_complete": as_on_complete,
    "context": dump_context,
}
# None takes these back; for the others it has a meaning of its own, or none.
_CLEARED_BY_NONE = frozenset(
    {"run_at", "run_after", "max_attempts", "dedup_key", "dedup_for", "debounce"}
)


@attrs.frozen(kw_only=True)
class Overrides:
    """Options that were given, checked. None: was not given."""

    queue: str | None = None
    priority: int | None = None
    key: str | Literal[False] | None = None  # False: none
    run_at: dt.datetime | None = None
    run_after: float | None = None
    max_attempts: int | None = None
    retry: RetryPolicy | None = None
    timeout: float | None = None
    keep_for: float | None = None
    dedup_key: str | None = None
    dedup_for: float | None = None
    debounce: Debounce | None = None
    # JSON text; False: none
    on_complete: str | Literal[False] | None = attrs.field(default=None, repr=False)
    context: str | None = attrs.field(default=None, repr=False)  # JSON text

    def merged(self, options: Mapping[str, Any]) -> Overrides:
        """Return these with *options* on top.

        Raises:
            TypeError: An unknown option, or one of the wrong type.
            ValueError: A value out of its bounds; `run_at` and `run_after` at once.
        """
        if options.get("run_at") is not None and options.get("run_after") is not None:
            raise ValueError(
                "give run_at or run_after, not both: "
                f"run_at={options['run_at']!r}, run_after={options['run_after']!r}"
            )
        changes: dict[str, Any] = {}
        for name, value in options.items():
            check = _CHECKS.get(name)
            if check is None:
                raise TypeError(f"unknown option {name!r}; there are: {', '.join(_CHECKS)}")
            cleared = value is None and name in _CLEARED_BY_NONE
            changes[name] = None if cleared else check(value)
        return attrs.evolve(self, **(_superseded(changes) | changes))

    def check_dedup(self, task_type: str) -> None:
        """Raise `ValueError` if what is said of the dedup key does not go together."""
        asked = [name for name in ("dedup_for", "debounce") if getattr(self, name) is not None]
        if asked and self.dedup_key is None:
            raise ValueError(f"{task_type} has {asked[0]}, but no dedup_key: give it one")
        if len(asked) > 1:
            raise ValueError(
                f"{task_type} has dedup_for and debounce: dedup_for drops calls, and debounce"
                f" keeps the last; give one of them"
            )
        when = [name for name in ("run_at", "run_after") if getattr(self, name) is not None]
        if self.debounce is not None and when:
            raise ValueError(
                f"{task_type} has debounce and {when[0]}: debounce says when it is due; give one"
            )


def _superseded(changes: Mapping[str, Any]) -> dict[str, None]:
    """Return the options that these replace, as None."""
    gone: dict[str, None] = {}
    if changes.get("run_at") is not None:
        gone["run_after"] = None
    if changes.get("run_after") is not None:
        gone["run_at"] = None
    if "retry" in changes:  # a whole policy, its max_attempts included
        gone["max_attempts"] = None
    if changes.get("on_complete") is False:
        gone["context"] = None
    return gone
