"""How long to wait before trying again: for tasks, and for the worker's own siblings."""

from __future__ import annotations

import datetime as dt
import math
import random

import attrs

from ._checks import duration, real, whole


def _initial(value: float | dt.timedelta) -> float:
    return duration(value, "initial", positive=True)


def _maximum(value: float | dt.timedelta) -> float:
    return duration(value, "maximum", positive=True)


def exponential(initial: float, factor: float, maximum: float, n: int) -> float:
    """Return min(maximum, initial * factor ** (n - 1)); never overflows."""
    # Compare logarithms first: the power itself may not fit a float, nor maximum / initial.
    if (n - 1) * math.log(factor) >= math.log(maximum) - math.log(initial):
        return maximum
    # In two steps: the power may not fit even where the product does. And not with an int,
    # whose power has as many digits as it needs.
    half = (n - 1) // 2
    return min(maximum, initial * float(factor) ** half * float(factor) ** (n - 1 - half))


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How often a task is attempted, and how long to wait in between.

    After failed attempt n the wait is t = min(maximum, initial * factor ** (n - 1)) seconds,
    uniform in [t * (1 - jitter), t].

    Args:
        max_attempts: Attempts in all, at least 1.
        initial: Seconds after the first failure, more than 0.
        maximum: Seconds at most, at least *initial*.
        factor: Growth from one wait to the next, 1 to 1000.
        jitter: 0 (none) to 1 (anything between no wait and t).

    Raises:
        ValueError: A number out of its bounds, also NaN and infinity.
        TypeError: Not a number.
    """

    max_attempts: int = 5
    initial: float = attrs.field(default=1.0, converter=_initial)
    maximum: float = attrs.field(default=60.0, converter=_maximum)
    factor: float = 2.0
    jitter: float = 0.5

    def __attrs_post_init__(self) -> None:
        whole(self.max_attempts, "max_attempts", minimum=1)
        real(self.factor, "factor", minimum=1, maximum=1000)
        real(self.jitter, "jitter", minimum=0, maximum=1)
        if self.maximum < self.initial:
            msg = f"maximum ({self.maximum!r}) must not be less than initial ({self.initial!r})"
            raise ValueError(msg)

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Return the seconds to wait after failed *attempt* (1 is the first)."""
        t = exponential(self.initial, self.factor, self.maximum, attempt)
        return rng.uniform(t * (1 - self.jitter), t)


ONCE = RetryPolicy(max_attempts=1)


@attrs.frozen(kw_only=True)
class Backoff:
    """How a failing sibling of the worker is restarted: ever more slowly, for ever.

    After failure n in a row the wait is t = min(maximum, initial * 2 ** (n - 1)) seconds,
    uniform in [0.75 * t, t]. Starts over once it has been healthy for *healthy_after* seconds.
    """

    initial: float = 0.25
    maximum: float = 30.0
    healthy_after: float = 30.0

    def delay(self, failures: int, rng: random.Random) -> float:
        """Return the seconds to wait after so many failures in a row."""
        t = exponential(self.initial, 2.0, self.maximum, failures)
        return rng.uniform(0.75 * t, t)
