"""Which of all tasks a verb is about."""

from __future__ import annotations

import datetime as dt

import attrs

from ._states import State


@attrs.frozen(kw_only=True)
class TaskFilter:
    """Which tasks to list, newest first; *after*: only ids below this one.

    *payloads*: with params, context and result.
    """

    state: State | None = None
    queue: str | None = None
    task_type: str | None = None
    limit: int = 100
    after: int | None = None
    payloads: bool = False


@attrs.frozen(kw_only=True)
class CancelFilter:
    """Which tasks to cancel: the ones that fit every field that is given."""

    queue: str | None = None
    task_type: str | None = None
    before: dt.datetime | None = None  # created earlier
