"""The arithmetic of a rate."""

from __future__ import annotations

import datetime as dt

from fractions import Fraction

from hypothesis import given, strategies as st

from nursery_queue._core._gcra import MICROSECOND, after_starts, may_start, opens_at, under
from nursery_queue._core._rate import Rate
from tests.support.flow_steps import most_in_a_window


NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
# Seconds that are whole microseconds: a window that is not would be rounded, too.
rates = st.builds(
    Rate,
    st.integers(1, 50),
    per=st.integers(100, 10**8).map(lambda microseconds: microseconds / 1e6),
    burst=st.integers(0, 60),
)
waits = st.lists(st.tuples(st.integers(0, 30), st.floats(0, 3), st.integers(1, 9)), max_size=60)


@given(rates, waits)
def test_no_window_has_more(rate: Rate, waits: list[tuple[int, float, int]]) -> None:
    """Whenever tasks come and however many, no window has more than count and burst together."""
    now, next_at, starts = NOW, None, list[dt.datetime]()
    for exactly, part, wanted in waits:
        if next_at is not None and exactly == 0:
            now = max(now, opens_at(rate, next_at, now))
        else:
            now += part * dt.timedelta(seconds=rate.interval)
        count = min(wanted, may_start(rate, next_at, now))
        if count:
            next_at = after_starts(rate, next_at, now, count)
            starts += [now] * count

    assert most_in_a_window(starts, rate.per) <= rate.count + rate.burst


@given(rates, st.integers(0, 200))
def test_all_of_it_may_start(rate: Rate, rounds: int) -> None:
    """One starts at each instant told, an interval apart; after a quiet time the burst does."""
    now = NOW
    next_at = after_starts(rate, None, now, rate.burst + 1)
    for _ in range(rounds):
        now = max(now, opens_at(rate, next_at, now))
        assert may_start(rate, next_at, now) == 1
        assert may_start(rate, next_at, now - MICROSECOND) == 0
        next_at = after_starts(rate, next_at, now, 1)

    exact = rounds * Fraction(repr(rate.per)) * 1_000_000 / rate.count
    assert (now - NOW) / MICROSECOND <= exact + rounds + 2
    assert may_start(rate, next_at, next_at) == rate.burst + 1


@given(rates, rates, st.integers(0, 10**9))
def test_another_rate(old: Rate, new: Rate, waited: int) -> None:
    """Under a new rate a start is never later than one interval away, and never undone."""
    next_at = after_starts(old, None, NOW, old.burst + 1)
    now = NOW + waited * MICROSECOND

    changed = under(new, next_at, now)

    assert changed <= next_at
    assert may_start(new, changed, now + dt.timedelta(seconds=new.interval) + MICROSECOND) >= 1
    assert under(old, next_at, now) == next_at


@given(rates, st.integers(0, 10**15))
def test_a_clock_that_was_ahead(rate: Rate, ahead: int) -> None:
    """Once it is put back one starts after a minute and an interval, and then as ever."""
    next_at = after_starts(rate, None, NOW + ahead * MICROSECOND, rate.burst + 1)
    now = NOW + dt.timedelta(minutes=1, seconds=rate.interval) + 2 * MICROSECOND

    now = min(now, max(NOW, opens_at(rate, next_at, NOW)))
    assert may_start(rate, next_at, now) >= 1
    next_at = after_starts(rate, next_at, now, 1)
    assert may_start(rate, next_at, now) <= rate.burst
    assert opens_at(rate, next_at, now) <= now + dt.timedelta(seconds=rate.interval) + MICROSECOND


def test_the_number_as_it_is_written() -> None:
    """A tenth of a second is one, though no float is: nothing is rounded that need not be."""
    rate = Rate(19, per=0.1)

    assert after_starts(rate, None, NOW, 19) == NOW + dt.timedelta(milliseconds=100)
