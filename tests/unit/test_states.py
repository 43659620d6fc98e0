from __future__ import annotations

import pytest

from nursery_queue._core._errors import InvalidTransition
from nursery_queue._core._states import FINAL, TRANSITIONS, Event, State, sources, transition


EDGES = [
    (state, event, end) for state, edges in TRANSITIONS.items() for event, end in edges.items()
]
NO_EDGES = [(state, event) for state in State for event in Event if event not in TRANSITIONS[state]]


@pytest.mark.parametrize(("state", "event", "end"), EDGES)
def test_an_edge(state: State, event: Event, end: State) -> None:
    """Each edge of the table can be walked, and is found from its event."""
    assert transition(state, event) is end
    assert state in sources(event)


@pytest.mark.parametrize(("state", "event"), NO_EDGES)
def test_no_edge(state: State, event: Event) -> None:
    """What is not in the table is refused, in words."""
    with pytest.raises(InvalidTransition, match=f"a {state} task cannot {event}"):
        transition(state, event)

    assert state not in sources(event)


def test_every_state_has_its_edges() -> None:
    """No state and no event is forgotten in the table."""
    assert set(TRANSITIONS) == set(State)
    assert {event for _, event, _ in EDGES} == set(Event)


def test_running_is_left_by_settling_alone() -> None:
    """A running task ends, waits for another attempt, or goes back: never straight to running."""
    ends = set(TRANSITIONS[State.RUNNING].values())

    assert ends == {State.READY, State.SCHEDULED, *FINAL}


def test_final_states() -> None:
    """Only `revive` leads out of a final state, and nothing out of success."""
    assert {state for state in State if state.is_final} == FINAL
    for state in FINAL:
        assert set(TRANSITIONS[state]) <= {Event.REVIVE}
    assert not TRANSITIONS[State.SUCCEEDED]


def test_every_task_can_end() -> None:
    """From every state there is a way to success."""
    reached = {State.SUCCEEDED, State.FAILED, State.CANCELLED} - {State.FAILED, State.CANCELLED}
    while grown := {state for state, _, end in EDGES if end in reached} - reached:
        reached |= grown

    assert reached == set(State)


def test_words() -> None:
    """States print as the words that SQL and the command line use."""
    assert str(State.READY) == f"{State.READY}" == "ready"
