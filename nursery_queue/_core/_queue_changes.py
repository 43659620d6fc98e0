"""What can be set of a queue, checked where it comes in."""

from __future__ import annotations

from collections.abc import Mapping
from types import EllipsisType
from typing import Any, Final, TypedDict, cast

import attrs

from ._checks import whole
from ._rate import Rate


class QueueChanges(TypedDict, total=False):
    """What is to be set of a queue; what is left out stays as it is."""

    paused: bool
    max_running: int | None
    max_running_per_key: int | None
    rate: Rate | None
    rate_per_key: Rate | None
    notify: bool


@attrs.frozen(kw_only=True)
class Declared:
    """What has become of the queues that code declares, by their names."""

    changed: tuple[str, ...] = ()  # set as declared just now
    left: Mapping[str, str] = attrs.field(factory=dict[str, str])  # not set yet, and why


def checked(**given: object) -> QueueChanges:
    """Return what is *given*, without what is left out (``...``), or raise naming it."""
    changes = {
        name: _CHECKS[name](value, name)
        for name, value in given.items()
        if not isinstance(value, EllipsisType)
    }
    return cast("QueueChanges", changes)


def _truth(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r:.100}")
    return value


def _limit(value: object, name: str) -> int | None:
    return None if value is None else whole(value, name, minimum=0)


def _rate(value: object, name: str) -> Rate | None:
    if value is not None and not isinstance(value, Rate):
        raise TypeError(
            f"{name} must be a Rate, such as nursery_queue.Rate(100, per=60), or None,"
            f" not {value!r:.100}"
        )
    return value


_CHECKS: Final[dict[str, Any]] = {
    "paused": _truth,
    "max_running": _limit,
    "max_running_per_key": _limit,
    "rate": _rate,
    "rate_per_key": _rate,
    "notify": _truth,
}
