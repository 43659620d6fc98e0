"""What is measured in a round, and the rows that are shown of all rounds."""

from __future__ import annotations

import math
import statistics

from collections.abc import Sequence
from typing import Any, Self

import attrs


@attrs.frozen(kw_only=True)
class Measured:
    """One thing, measured once."""

    what: str
    tasks: int  # or chunks of a stream
    seconds: float
    worker_cpu: float  # seconds
    server_cpu: float | None  # None: the server is elsewhere
    waits: Sequence[float] = ()  # milliseconds from each commit to the start of the handler
    call_waits: Sequence[float] = ()  # from the call of enqueue; benchmarks/ shows these as well


@attrs.frozen(kw_only=True)
class Row:
    """One thing, of all rounds: medians, and of the rate its extremes."""

    what: str
    tasks: int  # in each round
    rounds: int
    rate: float  # a second
    rate_min: float
    rate_max: float
    worker_cpu_us: float  # a task
    server_cpu_us: float | None  # None also: too little to be counted
    p50_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None

    @classmethod
    def of(cls, measured: Sequence[Measured]) -> Self:
        """Put the rounds of one thing together."""
        first = measured[0]
        rates = [each.tasks / each.seconds for each in measured]
        server = [each.server_cpu for each in measured if each.server_cpu is not None]
        waits = sorted(wait for each in measured for wait in each.waits)
        return cls(
            what=first.what,
            tasks=first.tasks,
            rounds=len(measured),
            rate=round(statistics.median(rates), 1),
            rate_min=round(min(rates), 1),
            rate_max=round(max(rates), 1),
            worker_cpu_us=_each([one.worker_cpu for one in measured], first.tasks),
            server_cpu_us=_each(server, first.tasks) or None
            if len(server) == len(measured)
            else None,
            p50_ms=percentile(waits, 50),
            p99_ms=percentile(waits, 99),
            max_ms=percentile(waits, 100),
        )

    def as_json(self) -> dict[str, Any]:
        """Return it as an object; what is not measured of this thing is left out."""
        late = {"p50_ms", "p99_ms", "max_ms"} if self.p50_ms is None else set[str]()
        return {key: value for key, value in attrs.asdict(self).items() if key not in late}


def _each(seconds: Sequence[float], tasks: int) -> float:
    return round(statistics.median(seconds) / tasks * 1e6, 1)


def percentile(ordered: Sequence[float], percent: int) -> float | None:
    """Return the least value that so many percent of all do not exceed."""
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)], 2)
