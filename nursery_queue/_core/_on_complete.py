"""The task to be stored when another has ended, as that other one keeps it: JSON text."""

from __future__ import annotations

import json
import math

from typing import Any, Literal, Protocol, runtime_checkable

from ._checks import label
from ._declaration import AS_DECLARED, KEY_AS_DECLARED
from ._json_text import to_text
from ._model import NewTask
from ._retry import waits


@runtime_checkable
class _Completer(Protocol):
    """A task type; the class itself is in a layer above this one."""

    def to_completion(self) -> NewTask: ...


def as_on_complete(value: Any) -> str | Literal[False]:
    """Return the text to be stored for `on_complete=value`; False for None: nothing.

    Raises:
        TypeError: It is neither a task type nor a name, or its handler cannot be told.
        ValueError: It has options that make no sense here.
    """
    if value is None:
        return False
    if isinstance(value, str):
        return _text(_by_name(label(value, "on_complete")))
    if isinstance(value, _Completer) and not isinstance(value, type):
        return _text(value.to_completion())
    raise TypeError(
        f"on_complete must be a task type or the name of one, not {value!r:.100}: "
        f"is the function decorated with @app.task?"
    )


def _by_name(name: str) -> NewTask:
    """Return a task of which nothing is said but its type."""
    return NewTask(
        task_type=name,
        params="{}",
        queue=None,
        priority=None,
        key=KEY_AS_DECLARED,
        on_complete=AS_DECLARED,
    )


def _text(task: NewTask) -> str:
    """Return *task* without its params, and without the fields left to its code or declaration."""
    said: dict[str, Any] = {
        "queue": task.queue,
        "priority": task.priority,
        "max_attempts": task.max_attempts,
        "backoff": task.backoff and waits(task.backoff),
        # JSON has no infinity; the database reads this word as one.
        "timeout": "infinity" if task.timeout == math.inf else task.timeout,
        "keep_for": task.keep_for,
        "run_after": task.run_after or None,
        "context": task.context and json.loads(task.context),
    }
    asked: dict[str, Any] = {"task_type": task.task_type}
    asked.update((name, value) for name, value in said.items() if value is not None)
    if task.key != KEY_AS_DECLARED:  # null says that there is none
        asked["key"] = task.key
    if task.on_complete != AS_DECLARED:  # null says that there is none, also if one is declared
        asked["on_complete"] = task.on_complete and json.loads(task.on_complete)
    return to_text(asked, "on_complete", deep=False)
