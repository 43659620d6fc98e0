"""What code declares of a task type, as a store keeps it for programs that lack the code."""

from __future__ import annotations

import attrs


# What a task has for `on_complete` if nothing is said of it: JSON's null, which says no task.
AS_DECLARED = "null"


@attrs.frozen(kw_only=True)
class Declaration:
    """What counts for tasks of which no more than the type is said.

    Stored by each worker when it starts, so the newest start counts.
    """

    name: str
    queue: str = "default"
    priority: int = 0
    keep_for: float = 86_400.0  # seconds; for ends that no worker of that code brings about
    on_complete: str | None = None  # as in `NewTask`
