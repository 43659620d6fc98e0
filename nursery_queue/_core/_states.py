"""The life of a task: the one place that knows which state follows which.

Rule 1: every change of state is an edge of `TRANSITIONS`. Both stores take the state they
write from `transition()`, and the contract suite walks every edge on both.

Rule 2: this module knows neither the time, nor the caller, nor where a task is kept.
"""

from __future__ import annotations

import enum

from collections.abc import Mapping
from typing import Final

from ._errors import InvalidTransition


class State(enum.StrEnum):
    """Where a task is in its life."""

    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the task has ended: nothing but `retry` moves it again."""
        return self in FINAL


class Event(enum.StrEnum):
    """The events in the life of a task."""

    PROMOTE = "promote"  # its time has come
    CLAIM = "claim"  # a worker takes it
    SUCCEED = "succeed"  # the handler returned
    RETRY = "retry"  # the attempt failed, and there will be another
    SNOOZE = "snooze"  # the handler asked to be called later
    FAIL = "fail"  # the attempt failed, and it was the last
    CANCEL = "cancel"  # a caller asked for it
    INTERRUPT = "interrupt"  # the worker gives it back, unharmed
    DEFER = "defer"  # the same, to be run again after a while
    LOSE = "lose"  # its worker is dead
    REVIVE = "revive"  # a caller wants it run again


TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = {
    State.SCHEDULED: {Event.PROMOTE: State.READY, Event.CANCEL: State.CANCELLED},
    State.READY: {Event.CLAIM: State.RUNNING, Event.CANCEL: State.CANCELLED},
    State.RUNNING: {
        Event.SUCCEED: State.SUCCEEDED,
        Event.RETRY: State.SCHEDULED,
        Event.SNOOZE: State.SCHEDULED,
        Event.FAIL: State.FAILED,
        Event.CANCEL: State.CANCELLED,
        Event.INTERRUPT: State.READY,
        Event.DEFER: State.SCHEDULED,
        Event.LOSE: State.READY,
    },
    State.SUCCEEDED: {},
    State.FAILED: {Event.REVIVE: State.READY},
    State.CANCELLED: {Event.REVIVE: State.READY},
}

FINAL: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
# The events with which a running task ends.
ENDS: Final = frozenset(
    event for event, state in TRANSITIONS[State.RUNNING].items() if state in FINAL
)


def transition(state: State, event: Event) -> State:
    """Return the state that follows, or raise `InvalidTransition`."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise InvalidTransition(f"a {state} task cannot {event}") from None


def sources(event: Event) -> list[State]:
    """Return the states in which *event* may happen."""
    return [state for state, edges in TRANSITIONS.items() if event in edges]
