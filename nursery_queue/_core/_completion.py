"""How a task ended, as another one is told: public values, tagged by "status" in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs


@attrs.frozen
class Success:
    """The task succeeded; *value* is what its handler returned, as JSON has it."""

    value: Any


@attrs.frozen
class Failure:
    """The task failed for good.

    Attributes:
        error: Type and message of its last error: ``ValueError: no such page``.
        error_type: ``ValueError``, or with its module; ``worker_lost``, ``TimedOut``.
    """

    error: str
    error_type: str


@attrs.frozen
class Cancellation:
    """The task was cancelled; *reason* says whether it was waiting or running."""

    reason: str


Result: TypeAlias = Success | Failure | Cancellation

STATUSES: Mapping[type[Any], str] = {
    Success: "succeeded",
    Failure: "failed",
    Cancellation: "cancelled",
}
# The parameters of a handler that is told how a task ended.
PARAMETERS = ("task_id", "context", "result")


class AnyResult:
    """The annotation of a `result` that has none: a value in the form of a `Result` becomes one."""
