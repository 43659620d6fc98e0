from __future__ import annotations

from hypothesis import given, strategies as st

from nursery_queue import Counters
from nursery_queue._core._model import Fence, Outcome, Settlement
from nursery_queue._core._states import TRANSITIONS, Event, State
from nursery_queue._core._tally import Tally, counters_of


counts = st.integers(0, 10_000)
any_counters = st.builds(
    Counters,
    succeeded=counts,
    failed=counts,
    cancelled=counts,
    retries=counts,
    lost=counts,
    running=counts,
    backlog=counts,
)


def settlement(outcome: Outcome | None, event: Event) -> Settlement:
    return Settlement(
        fence=Fence(1, 1), event=event, attempt=1, lost=0, keep_for=1, outcome=outcome
    )


def test_nothing_to_divide() -> None:
    """Without completions the rates are 0, whatever else has been counted."""
    nothing = Counters(lost=7, running=3, backlog=2)
    retries_alone = Counters(retries=4)

    assert (nothing.completed, nothing.failure_rate, nothing.permanent_failure_rate) == (0, 0, 0)
    assert (retries_alone.failure_rate, retries_alone.permanent_failure_rate) == (1, 0)


def test_the_rates() -> None:
    """Retries are failures that are not for good, and have no part in the permanent rate."""
    some = Counters(succeeded=5, failed=2, cancelled=1, retries=4)

    assert some.completed == 12
    assert some.failure_rate == 0.5
    assert some.permanent_failure_rate == 0.25


def test_four_digits() -> None:
    """Rates are rounded to four digits."""
    third = Counters(succeeded=2, failed=1)
    few = Counters(succeeded=99_994, failed=6)

    assert third.failure_rate == 0.3333
    assert few.failure_rate == few.permanent_failure_rate == 0.0001


@given(any_counters, any_counters)
def test_the_bounds(one: Counters, two: Counters) -> None:
    """Rates are between 0 and 1, and a sum has what its parts have."""
    both = one + two

    assert 0 <= one.failure_rate <= 1
    assert 0 <= one.permanent_failure_rate <= 1
    assert both.completed == one.completed + two.completed
    assert both.lost == one.lost + two.lost
    assert (both.running, both.backlog) == (one.running + two.running, one.backlog + two.backlog)
    assert sum([one, two], Counters()) == both


def test_what_each_outcome_counts_as() -> None:
    """Of each outcome, with and without another attempt to follow, one counter or two go up."""
    found = {
        (outcome.value, final): {
            name
            for name in ("succeeded", "failed", "cancelled", "retries", "lost")
            if getattr(counters_of({(outcome, final): 1}), name)
        }
        for outcome in Outcome
        for final in (True, False)
    }

    assert {way: names for way, names in found.items() if names} == {
        ("succeeded", True): {"succeeded"},
        ("succeeded", False): {"succeeded"},  # there is no such thing
        ("failed", True): {"failed"},
        ("failed", False): {"retries"},
        ("timed_out", True): {"failed"},
        ("timed_out", False): {"retries"},
        ("cancelled", True): {"cancelled"},
        ("cancelled", False): {"cancelled"},  # nor is there this
        ("lost", True): {"failed", "lost"},
        ("lost", False): {"lost"},
    }


def test_a_tally_is_taken_once() -> None:
    """A tally counts settlements until it is taken, and begins anew then."""
    tally = Tally()
    tally.add([settlement(Outcome.FAILED, Event.RETRY), settlement(Outcome.FAILED, Event.FAIL)])
    tally.add([settlement(Outcome.FAILED, Event.RETRY), settlement(None, Event.INTERRUPT)])
    # It failed, and somebody had asked that it should not be tried again.
    tally.add([settlement(Outcome.FAILED, Event.CANCEL)])

    assert tally.take(running=3, backlog=4) == Counters(failed=2, retries=2, running=3, backlog=4)
    assert tally.take(running=0, backlog=0) == Counters()


@given(st.lists(st.tuples(st.sampled_from(Outcome), st.sampled_from(Event))))
def test_a_tally_counts_what_a_log_counts(ways: list[tuple[Outcome, Event]]) -> None:
    """What is counted as it comes is what is counted from the log afterwards."""
    edges = TRANSITIONS[State.RUNNING]
    ended = [(outcome, event) for outcome, event in ways if event in edges]
    tally = Tally()
    for outcome, event in ended:
        tally.add([settlement(outcome, event)])
    log: dict[tuple[Outcome, bool], int] = {}
    for outcome, event in ended:
        way = outcome, edges[event].is_final
        log[way] = log.get(way, 0) + 1

    assert tally.take(running=0, backlog=0) == counters_of(log)
