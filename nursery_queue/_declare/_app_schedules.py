"""The schedules that an app declares."""

from __future__ import annotations

import types

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from nursery_queue._core._checks import label
from nursery_queue._core._declaration import AS_DECLARED, KEY_AS_DECLARED
from nursery_queue._core._errors import ParamsError
from nursery_queue._core._model import NewTask
from nursery_queue._core._when import Cron, Every

from ._options import Seconds
from ._task_type import MAX_PARAMS_BYTES, TaskRequest, TaskType, as_request


if TYPE_CHECKING:
    from nursery_queue._core._schedules import Misfire, NewSchedule, Overlap

ScheduledTask = TaskType[..., Any] | TaskRequest | str
_NOTHING = NewTask(task_type="-", params="{}")


def as_new_schedule(
    name: str,
    when: Cron | Every,
    task: ScheduledTask,
    *,
    max_params_bytes: int = MAX_PARAMS_BYTES,
    **options: Any,
) -> NewSchedule:
    """Return a schedule, checked.

    Raises:
        TypeError, ValueError: What is no schedule; the message says what to write.
        PayloadTooLarge: The params are larger than *max_params_bytes*.
    """
    from nursery_queue._core._schedules import NewSchedule  # noqa: PLC0415  # most apps have none

    checked = NewSchedule(name=name, when=when, task=_NOTHING, **options)
    return attrs.evolve(checked, task=_new_task(checked.name, as_request(task), max_params_bytes))


def _new_task(name: str, request: TaskRequest, max_params_bytes: int) -> NewTask:
    """Return the task of each tick: what *request* leaves out is as declared then."""
    given = request.overrides
    for option, instead in (("dedup_key", "overlap='skip'"), ("run_at", "`when` alone")):
        if (value := getattr(given, option)) is not None:
            raise ValueError(
                f"schedule {name!r}: its task has {option}={value!r}, but each tick has a task of "
                f"its own: use {instead}"
            )
    return attrs.evolve(
        request.to_new_task(max_params_bytes),
        queue=given.queue,
        priority=given.priority,
        key=_key(request),
        on_complete=AS_DECLARED if given.on_complete is None else given.on_complete or None,
    )


def _key(request: TaskRequest) -> str | None:
    """Return the key of each tick's task: what a function makes of the params, only code knows."""
    if request.overrides.key is not None:
        return request.overrides.key or None
    declares = None if request.made_by is None else request.made_by.key
    return request.key if callable(declares) else KEY_AS_DECLARED


@attrs.define(eq=False)
class _Declared:
    """A schedule as it was declared; its params may have to wait for later names."""

    task: ScheduledTask
    schedule: NewSchedule | None  # None: an annotation of its handler names what comes later
    arguments: Mapping[str, Any]

    def complete(self) -> NewSchedule:
        if self.schedule is None:
            self.schedule = as_new_schedule(task=self.task, **self.arguments)
        return self.schedule


class Schedules:
    """The part of an app that declares when tasks are enqueued."""

    def __init__(self) -> None:
        super().__init__()
        self._schedules: dict[str, _Declared] = {}

    @property
    def schedules(self) -> Mapping[str, Cron | Every]:
        """When the schedules fire, by name: a read-only copy."""
        when = {name: each.arguments["when"] for name, each in self._schedules.items()}
        return types.MappingProxyType(when)

    def schedule(
        self,
        name: str,
        when: Cron | Every,
        task: ScheduledTask,
        *,
        misfire: Misfire = "latest",
        overlap: Overlap = "allow",
        jitter: Seconds = 0.0,
        paused: bool = False,
    ) -> None:
        """Have a task enqueued at instants, called ticks: one task for each, whoever dies.

        Workers store it when they start, and any of them fires it: there is no leader. A tick at
        the very instant at which it is stored does not fire. What is edited at run time stays so
        until the code says something else here; a schedule that no code declares any more fires no
        more. Each task is due at its tick, by the database's clock, and `ctx.tick` is that instant.

        Args:
            name: Its own name among all schedules in the database, also those of other apps.
            when: A `Cron` or an `Every`.
            task: A task type that needs no arguments, what `bind()` returned, or the name of a
                task type; options included, but for `dedup_key` and `run_at`.
            misfire: What becomes of ticks that passed while no worker lived, or while it was
                paused: "latest" (the newest has its task), "skip" (none has) or "all" (each, the
                newest 1,000 at most).
            overlap: What a tick does when the task of the one before has not ended: "allow" (it has
                its task all the same), "skip" (it has none) or "cancel" (the one before is
                cancelled).
            jitter: A task is due up to so many seconds after its tick: how many depends on the
                name and the tick alone.
            paused: Store it, and do not fire it.

        Raises:
            ValueError: An option out of its bounds, or a name that is taken.
            TypeError: *when* or *task* is none, or the task needs arguments.
        """
        arguments: dict[str, Any] = {
            "name": name,
            "when": when,
            "misfire": misfire,
            "overlap": overlap,
            "jitter": jitter,
            "paused": paused,
        }
        declared = _declare(task, arguments)
        if label(name, "name") in self._schedules:
            raise ValueError(f"there are two schedules {name!r}: give one of them another name")
        self._schedules[name] = declared

    def declared_schedules(self) -> tuple[list[NewSchedule], dict[str, Exception]]:
        """Return what a worker stores when it starts; and what cannot be stored, and why."""
        good: list[NewSchedule] = []
        bad: dict[str, Exception] = {}
        for name, each in self._schedules.items():
            try:
                good.append(each.complete())
            except (TypeError, ValueError, ParamsError) as exc:
                bad[name] = exc
        return good, bad


def _declare(task: ScheduledTask, arguments: Mapping[str, Any]) -> _Declared:
    try:
        return _Declared(task, as_new_schedule(task=task, **arguments), arguments)
    except ParamsError as error:
        if not isinstance(error.__cause__, NameError):
            raise
        return _Declared(task, None, arguments)  # looked up when a worker starts
