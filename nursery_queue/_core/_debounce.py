"""How long a task waits for the last of many calls."""

from __future__ import annotations

import datetime as dt

import attrs

from ._checks import duration


def _wait(value: float | dt.timedelta) -> float:
    return duration(value, "wait", positive=True)


def _max_wait(value: float | dt.timedelta | None) -> float | None:
    return None if value is None else duration(value, "max_wait", positive=True)


@attrs.frozen
class Debounce:
    """Waits for calls to stop: each further one replaces the task, and starts the wait anew.

    An option of an enqueue, beside a `dedup_key`: ``debounce=nq.Debounce(30)``. While the task with
    that key has not started, each further enqueue replaces its params, key, priority and queue, and
    its type, by what the call says, or else by what is declared; all else stays as the first call
    said. It returns the id of that task, with ``created=False``. A task that has started does not
    count: a new one is stored, and the key moves to it, so no call is lost.

    Args:
        wait: Seconds from the last call until the task is due.
        max_wait: Seconds from the first call after which it is due in any case; None: no end.

    Raises:
        ValueError: One of them is not above 0, or *max_wait* is less than *wait*.
    """

    wait: float = attrs.field(converter=_wait)
    max_wait: float | None = attrs.field(default=None, converter=_max_wait)

    def __attrs_post_init__(self) -> None:
        if self.max_wait is not None and self.max_wait < self.wait:
            raise ValueError(
                f"max_wait must not be less than wait: {self.max_wait:g} < {self.wait:g}"
            )
