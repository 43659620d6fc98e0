"""How long to wait before trying again: for tasks, and for the worker's own loops."""

from __future__ import annotations

import datetime as dt
import enum
import math
import random

import attrs

from ._checks import duration, real, whole


_USUAL = 60.0  # seconds: the longest wait of a policy that does not say


def _initial(value: float | dt.timedelta) -> float:
    return duration(value, "initial", positive=True)


class _Unsaid(enum.Enum):
    """A maximum that was not given."""

    FOLLOWS = "follows"


def _maximum(value: float | dt.timedelta | _Unsaid) -> float | _Unsaid:
    return value if isinstance(value, _Unsaid) else duration(value, "maximum", positive=True)


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
        maximum: Seconds at most, at least *initial*. Left out, it follows that: 60, or *initial*
            if that is more, also when `attrs.evolve` changes *initial*.
        factor: Growth from one wait to the next, 1 to 1000.
        jitter: 0 (none) to 1 (anything between no wait and t).

    Raises:
        ValueError: A number out of its bounds, also NaN and infinity.
        TypeError: Not a number.
    """

    max_attempts: int = 5
    initial: float = attrs.field(default=1.0, converter=_initial)
    _asked: float | _Unsaid = attrs.field(
        default=_Unsaid.FOLLOWS, converter=_maximum, alias="maximum", eq=False, repr=False
    )
    maximum: float = attrs.field(init=False)
    factor: float = 2.0
    jitter: float = 0.5

    def __attrs_post_init__(self) -> None:
        whole(self.max_attempts, "max_attempts", minimum=1)
        real(self.factor, "factor", minimum=1, maximum=1000)
        real(self.jitter, "jitter", minimum=0, maximum=1)
        maximum = self._asked
        if isinstance(maximum, _Unsaid):
            maximum = max(_USUAL, self.initial)
        object.__setattr__(self, "maximum", maximum)  # as attrs does itself
        if maximum < self.initial:
            msg = f"maximum ({maximum!r}) must not be less than initial ({self.initial!r})"
            raise ValueError(msg)

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Return the seconds to wait after failed *attempt* (1 is the first)."""
        t = exponential(self.initial, self.factor, self.maximum, attempt)
        return rng.uniform(t * (1 - self.jitter), t)


def waits(policy: RetryPolicy) -> dict[str, float]:
    """Return the part of *policy* that says how long to wait, as a task's row has it."""
    return {name: getattr(policy, name) for name in ("initial", "maximum", "factor", "jitter")}


ONCE = RetryPolicy(max_attempts=1)


@attrs.frozen(kw_only=True)
class Backoff:
    """How a failing loop of the worker is restarted: ever more slowly, for ever.

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
