"""The declaration of a task type, as a store keeps it for programs that lack its code."""

from __future__ import annotations

import attrs


# The `on_complete` of a task that leaves it to its declaration: JSON's null, which is no task.
AS_DECLARED = "null"


@attrs.frozen(kw_only=True)
class Declaration:
    """The defaults of tasks of which no more than the type is given.

    Stored by each worker when it starts, so the newest start counts.
    """

    name: str
    queue: str = "default"
    priority: int = 0
    keep_for: float = 86_400.0  # seconds; for ends that no worker of that code brings about
    on_complete: str | None = None  # as in `NewTask`
