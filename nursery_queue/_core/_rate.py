"""How many tasks may start in how much time."""

from __future__ import annotations

import datetime as dt

import attrs

from ._checks import LONGEST, duration, whole


FASTEST = 1_000_000  # starts a second: PostgreSQL counts time in microseconds


def _per(value: float | dt.timedelta) -> float:
    return duration(value, "per", positive=True)


@attrs.frozen
class Rate:
    """At most *count* starts in *per* seconds: it counts starts, retries included, not what runs.

    After a quiet time ``burst + 1`` may start at once, then one every ``per / count`` seconds: any
    window of *per* seconds has at most ``count + burst`` starts, wherever it begins. Nothing is
    reset at the full minute, so there is no rush then.

    Args:
        count: Starts in *per* seconds, at least 1.
        per: Seconds, more than 0, or a timedelta; no more than a million starts a second.
        burst: Starts that may come early, 0 or more; the time for which they stand,
            ``burst * per / count``, is at most 100 years.

    Raises:
        ValueError: A number out of its bounds, also NaN and infinity.
        TypeError: *count* or *burst* is no whole number, or *per* neither number nor timedelta.
    """

    count: int
    per: float = attrs.field(converter=_per)
    burst: int = 0

    def __attrs_post_init__(self) -> None:
        whole(self.count, "count", minimum=1)
        whole(self.burst, "burst", minimum=0)
        if self.count > self.per * FASTEST:
            msg = f"a rate is at most {FASTEST:,} starts a second, not {self.count} in {self.per} s"
            raise ValueError(msg)
        if self.tolerance > LONGEST:
            raise ValueError(
                f"burst ({self.burst}) times per / count ({self.interval:g} s) must be at most 100"
                " years: so long is the quiet time after which so many may start at once"
            )

    def __str__(self) -> str:
        """Return it as the command line takes it: 1000/60, or 1000/60+20 with a burst of 20."""
        text = f"{self.count}/{self.per!r}".removesuffix(".0")
        return f"{text}+{self.burst}" if self.burst else text

    @property
    def interval(self) -> float:
        """Seconds from one start to the next when there is no burst left."""
        return self.per / self.count

    @property
    def tolerance(self) -> float:
        """Seconds by which a start may come early: what the burst is worth (GCRA's tau)."""
        return self.burst * self.per / self.count
