"""The declaration of a task type, as a store keeps it for programs that lack its code."""

from __future__ import annotations

import attrs

from ._keys import key_in


# The `on_complete` of a task that leaves it to its declaration: JSON's null, which is no task.
AS_DECLARED = "null"
# The `key` of such a task: a character that no key has, as only printable ones are taken.
KEY_AS_DECLARED = "\x01"


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
    key_parameter: str | None = None  # its value is the key
    key_default: str | None = None  # the key of a task that leaves that parameter out

    def key_of(self, params: str) -> str | None:
        """Return the key of a task with *params*, JSON text; raise if that is none."""
        if self.key_parameter is None:
            return None
        what = f"the key of a task {self.name}"
        return key_in(params, self.key_parameter, self.key_default, what)
