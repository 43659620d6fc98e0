"""Events of tasks, and the instruments that are told of them; one writes them to the log."""

from __future__ import annotations

import logging

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import attrs

from nursery_queue._core._counters import Counters
from nursery_queue._core._events import Completed, Enqueued, Happening, Report, Started
from nursery_queue._trio._signals import interrupted


log = logging.getLogger("nursery_queue")
events = logging.getLogger("nursery_queue.events")
E = TypeVar("E", bound=Happening)

# The methods of an instrument, and the level at which `LogEvents` logs their events.
_LEVELS = {
    "task_enqueued": logging.DEBUG,
    "task_started": logging.DEBUG,
    "task_completed": logging.DEBUG,
    "report": logging.INFO,
}


class Instrument:
    """Is told of events of tasks: override the methods for those that you want to hear of.

    Given to a client, and heard by its workers, too. The methods are called in trio's thread,
    between two steps of the worker, so they must be quick and cannot wait. One that raises is
    logged, and its instrument is never called again; the task goes on unharmed.

    Other programs' events are not told: of tasks enqueued by plain SQL or another process, and
    of those that `on_complete` asks for, the first event is their start.
    """

    def task_enqueued(self, event: Enqueued) -> None:
        """A task is stored. In a transaction: after its commit, and not after a rollback."""

    def task_started(self, event: Started) -> None:
        """An attempt has started: its handler is about to be called.

        Once for each attempt, before `task_completed` of that one. If its params do not fit, or
        if it is cancelled while it waits for a thread, its end comes without a call.
        """

    def task_completed(self, event: Completed) -> None:
        """The outcome of an attempt is stored, one that goes round again included.

        Once for each attempt that has started. If its worker has died or lost its lease, another
        worker tells that it is lost. There is no such event if the worker died within a heartbeat
        of the start of a prefetched task, or after it had stored the outcome, or ended before the
        database could say whether it was stored.
        """

    def report(self, event: Report) -> None:
        """A worker reports: every 60 s while it has something to do, and when it ends."""


class LogEvents(Instrument):
    """Writes events to the logger `nursery_queue.events`; a client has this one by default.

    Tasks at level DEBUG, reports at level INFO. Each record has an attribute `event`: a dict
    with the kind of the event, such as "task_started", and its fields, ready for JSON.
    """

    def task_enqueued(self, event: Enqueued) -> None:
        """Log it at level DEBUG."""
        where = "its queue" if event.queue is None else f"queue {event.queue}"
        what = f"task {event.task_id} ({event.task_type}) on {where}"
        _log(
            "task_enqueued",
            event,
            f"enqueued {what}" if event.created else f"not enqueued: there is {what}",
        )

    def task_started(self, event: Started) -> None:
        """Log it at level DEBUG."""
        _log(
            "task_started", event, f"{_attempt(event)} started, {event.lag:.3g} s after it was due"
        )

    def task_completed(self, event: Completed) -> None:
        """Log it at level DEBUG."""
        error = "" if event.error is None else f": {event.error}"
        end = "" if event.state.value == event.status.value else f", the task is {event.state}"
        _log(
            "task_completed",
            event,
            f"{_attempt(event)} {event.status} after {event.took:.3g} s{end}{error}",
        )

    def report(self, event: Report) -> None:
        """Log it at level INFO."""
        count = event.counters
        _log(
            "report",
            event,
            f"worker {event.worker}, {event.seconds:.3g} s: {count.completed} completed"
            f" ({count.succeeded} succeeded, {count.failed} failed, {count.cancelled} cancelled,"
            f" {count.retries} to be retried), {count.lost} lost, {count.running} running,"
            f" {count.backlog} due; failure rate {count.failure_rate:g},"
            f" permanent {count.permanent_failure_rate:g}",
        )


def _attempt(event: Started | Completed) -> str:
    return f"task {event.task_id} ({event.task_type}, attempt {event.attempt})"


def _log(kind: str, event: Happening, message: str) -> None:
    events.log(_LEVELS[kind], "%s", message, extra={"event": {"kind": kind, **_fields(event)}})


def _fields(event: Happening) -> dict[str, Any]:
    """Return the fields of an event, ready for JSON; each counter is a field of its own."""
    fields: dict[str, Any] = {}
    for name, value in attrs.asdict(event, recurse=False).items():
        match value:
            case Counters():
                fields |= {"completed": value.completed, **attrs.asdict(value)}
                fields["failure_rate"] = value.failure_rate
                fields["permanent_failure_rate"] = value.permanent_failure_rate
            case bool() | int() | float() | None:
                fields[name] = value
            case _:
                fields[name] = str(value)
    return fields


@attrs.define(eq=False)
class Topic(Generic[E]):
    """The instruments that are told of one kind of event."""

    method: str
    give_up: Callable[[object], None]  # an instrument that raised
    _listeners: list[object] = attrs.field(factory=list[object], init=False)
    _loggers: list[object] = attrs.field(factory=list[object], init=False)

    @property
    def wanted(self) -> bool:
        """Whether an instrument would be told now: if not, the event need not be made."""
        return bool(
            self._listeners or (self._loggers and events.isEnabledFor(_LEVELS[self.method]))
        )

    def tell(self, event: E) -> None:
        """Tell the instruments, one after the other. Raises only an error of a signal handler."""
        loggers = self._loggers if events.isEnabledFor(_LEVELS[self.method]) else []
        for instrument in [*self._listeners, *loggers]:
            try:
                getattr(instrument, self.method)(event)
            except BaseException as exc:  # an instrument must not harm what it observes
                if interrupted(exc):
                    raise
                self.give_up(instrument)
                log.exception(
                    "the instrument %s raised in %s() and is not called again",
                    type(instrument).__qualname__,
                    self.method,
                )

    def add(self, instrument: object) -> None:
        """Tell this instrument from now on, if it overrides the method."""
        method = getattr(instrument, self.method, None)
        function = getattr(method, "__func__", method)
        if function is getattr(LogEvents, self.method):
            self._loggers.append(instrument)
        elif function not in {None, getattr(Instrument, self.method)}:
            self._listeners.append(instrument)

    def remove(self, instrument: object) -> None:
        """Tell this instrument no more."""
        self._listeners = [each for each in self._listeners if each is not instrument]
        self._loggers = [each for each in self._loggers if each is not instrument]


class EventTopics:
    """The instruments of one client, by kind of event."""

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self.enqueued: Topic[Enqueued] = Topic("task_enqueued", self._give_up)
        self.started: Topic[Started] = Topic("task_started", self._give_up)
        self.completed: Topic[Completed] = Topic("task_completed", self._give_up)
        self.reports: Topic[Report] = Topic("report", self._give_up)
        self._topics = self.enqueued, self.started, self.completed, self.reports
        for instrument in instruments:
            _check(instrument)
            for topic in self._topics:
                topic.add(instrument)

    def _give_up(self, instrument: object) -> None:
        for topic in self._topics:
            topic.remove(instrument)


def _check(instrument: object) -> None:
    if isinstance(instrument, type):
        raise TypeError(f"instruments must be objects: write {instrument.__qualname__}()")
    if not any(callable(getattr(instrument, name, None)) for name in _LEVELS):
        msg = f"an instrument has at least one of the methods {', '.join(_LEVELS)}; not so: "
        raise TypeError(f"{msg}{instrument!r}")
