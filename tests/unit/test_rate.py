"""Rates: how many tasks may start in how much time."""

from __future__ import annotations

import datetime as dt
import math

from typing import Any

import pytest

from hypothesis import given, strategies as st

from nursery_queue._core._checks import LONGEST
from nursery_queue._core._rate import FASTEST, Rate


def test_what_it_says() -> None:
    """Seconds may be a timedelta, there is no burst unless it is given, and it prints as typed."""
    minute = Rate(1000, per=dt.timedelta(minutes=1), burst=20)

    assert minute == Rate(1000, 60, 20)
    assert (minute.count, minute.per, minute.burst) == (1000, 60.0, 20)
    assert (minute.interval, minute.tolerance) == (0.06, 1.2)
    assert (Rate(5, per=0.5).burst, Rate(5, per=0.5).tolerance) == (0, 0.0)
    assert [str(each) for each in (minute, Rate(5, per=0.5))] == ["1000/60+20", "5/0.5"]


@given(st.integers(1, 2**31 - 1), st.floats(0, LONGEST, exclude_min=True))
def test_the_fastest(count: int, per: float) -> None:
    """No rate is faster than the database can tell two instants apart; all others are rates."""
    if count > per * FASTEST:
        with pytest.raises(ValueError, match="at most 1,000,000 starts a second"):
            Rate(count, per=per)
    else:
        assert Rate(count, per=per).interval > 0


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"count": 0}, "count must be between 1 and 2147483647, not 0"),
        ({"count": -1}, "not -1"),
        ({"count": 2**31}, "not 2147483648"),
        ({"per": 0}, "per must be more than 0 seconds"),
        ({"per": -60}, "not -60"),
        ({"per": math.nan}, "not nan"),
        ({"per": math.inf}, "not inf"),
        ({"per": LONGEST * 1.01}, "at most 100 years"),
        ({"burst": -1}, "burst must be between 0 and 2147483647, not -1"),
        ({"burst": 2**31}, "not 2147483648"),
        ({"count": 1, "per": LONGEST, "burst": 2}, r"burst \(2\).*at most 100 years"),
        ({"count": 10**9, "per": 1}, "not 1000000000 in 1.0 s"),
    ],
)
def test_out_of_bounds(numbers: dict[str, Any], said: str) -> None:
    """A number that cannot be meant is refused, with its name and value."""
    with pytest.raises(ValueError, match=said):
        Rate(**{"count": 10, "per": 60, **numbers})


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"count": 1.5}, "count must be a whole number, not 1.5"),
        ({"count": True}, "count must be a whole number"),
        ({"count": None}, "count must be a whole number"),
        ({"burst": 0.5}, "burst must be a whole number"),
        ({"per": "60"}, "per must be a number of seconds or a timedelta, not '60'"),
        ({"per": None}, "per must be a number of seconds"),
        ({"per": True}, "per must be a number of seconds"),
    ],
)
def test_no_numbers(numbers: dict[str, Any], said: str) -> None:
    """What is no number is a TypeError."""
    with pytest.raises(TypeError, match=said):
        Rate(**{"count": 10, "per": 60, **numbers})
