"""How a queue is set, in a form in which two stores can be compared."""

from __future__ import annotations

from typing import Any

import attrs

from nursery_queue._core._rate import Rate
from nursery_queue._memory._memory_rows import Setting


@attrs.frozen(kw_only=True)
class Pool:
    paused: bool = False
    max_running: int | None = None
    max_running_per_key: int | None = None
    rate: Rate | None = None
    rate_per_key: Rate | None = None

    @property
    def counts(self) -> bool:
        """Whether what runs of it is counted."""
        return self.max_running is not None or self.max_running_per_key is not None


def of_row(
    paused: bool, most: int | None, most_per_key: int | None, *rates: *tuple[Any, ...]
) -> Pool:
    """Return what a row of PostgreSQL says."""
    rate, rate_per_key = [
        None if numbers[0] is None else Rate(numbers[0], per=numbers[1], burst=numbers[2])
        for numbers in (rates[:3], rates[3:])
    ]
    return Pool(
        paused=paused,
        max_running=most,
        max_running_per_key=most_per_key,
        rate=rate,
        rate_per_key=rate_per_key,
    )


def of_setting(setting: Setting) -> Pool:
    """Return the same of memory."""
    return Pool(**{each.name: getattr(setting, each.name) for each in attrs.fields(Pool)})
