from __future__ import annotations

import datetime as dt
import math

from typing import Any

import pytest

from hypothesis import given, strategies as st

from nursery_queue._core._checks import LONGEST, duration, instant, label, real, whole
from nursery_queue._core._errors import RetryAfter, Snooze


@given(st.floats(0, LONGEST))
def test_a_duration_in_seconds(value: float) -> None:
    """Any number from zero to a hundred years is taken as it is."""
    assert duration(value, "wait") == value


@given(st.timedeltas(dt.timedelta(0), dt.timedelta(days=36_500)))
def test_a_duration_as_timedelta(value: dt.timedelta) -> None:
    """A timedelta is taken in seconds."""
    assert duration(value, "wait") == value.total_seconds()


@pytest.mark.parametrize(
    "value",
    [-1, -0.001, math.nan, math.inf, -math.inf, LONGEST * 1.01, 10**400, dt.timedelta(seconds=-1)],
)
def test_a_duration_out_of_bounds(value: Any) -> None:
    """What is no time to wait is refused, with its name and value."""
    with pytest.raises(ValueError, match="wait must be 0 or more seconds"):
        duration(value, "wait")


def test_a_duration_of_zero() -> None:
    """Zero is a duration unless it must be more."""
    assert duration(0, "wait") == 0.0
    with pytest.raises(ValueError, match="wait must be more than 0 seconds"):
        duration(0, "wait", positive=True)


@pytest.mark.parametrize("value", ["1", None, True, 1j])
def test_what_is_no_duration(value: Any) -> None:
    """What is no number is a TypeError; a boolean is no number."""
    with pytest.raises(TypeError, match="wait must be a number of seconds"):
        duration(value, "wait")


def test_whole() -> None:
    """A whole number within its bounds is taken; the bounds belong to it."""
    assert [whole(n, "n", minimum=1, maximum=3) for n in (1, 2, 3)] == [1, 2, 3]
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"n must be between 1 and 3, not {wrong}"):
            whole(wrong, "n", minimum=1, maximum=3)
    for no_number in (1.0, True, "1", None):
        with pytest.raises(TypeError, match="n must be a whole number"):
            whole(no_number, "n", minimum=1)


def test_real() -> None:
    """A number within its bounds is taken as a float; NaN is within none."""
    assert [real(n, "n", minimum=0, maximum=1) for n in (0, 0.5, 1)] == [0.0, 0.5, 1.0]
    for wrong in (-0.1, 1.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="n must be between 0 and 1"):
            real(wrong, "n", minimum=0, maximum=1)
    for no_number in (True, "1", None):
        with pytest.raises(TypeError, match="n must be a number"):
            real(no_number, "n", minimum=0, maximum=1)


def test_instant() -> None:
    """An instant has a time zone that says where it is."""

    class NoZone(dt.tzinfo):
        def utcoffset(self, _: dt.datetime | None, /) -> None:
            return None

        tzname = dst = utcoffset

    aware = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    assert instant(aware, "at") == aware
    with pytest.raises(ValueError, match="within the years 1 to 9999"):
        instant(dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))), "at")
    for naive in (aware.replace(tzinfo=None), aware.replace(tzinfo=NoZone())):
        with pytest.raises(ValueError, match="at must be timezone-aware"):
            instant(naive, "at")
    for other in (aware.date(), "2030-01-01", None):
        with pytest.raises(TypeError, match="at must be a datetime"):
            instant(other, "at")


@given(st.text("aé漢 .:-_", min_size=1, max_size=255))
def test_a_label(value: str) -> None:
    """A short printable name is taken, in any script."""
    assert label(value, "name") == value


@pytest.mark.parametrize("value", ["", "a" * 256, "a\n", "\0", "\ud800", "\x1b[0m"])
def test_what_is_no_label(value: str) -> None:
    """An empty, long or unprintable name is refused."""
    with pytest.raises(ValueError, match="name must be 1 to 255 printable characters"):
        label(value, "name")


@pytest.mark.parametrize("cls", [RetryAfter, Snooze])
def test_errors_that_carry_a_duration(cls: type[RetryAfter | Snooze]) -> None:
    """What a handler raises to wait is checked where it is made."""
    assert cls(5).seconds == 5.0
    assert cls(dt.timedelta(minutes=1)).seconds == 60.0  # type: ignore[arg-type]  # works as everywhere
    with pytest.raises(ValueError, match="seconds must be"):
        cls(-1)
