"""When schedules fire: `Cron`, `Every` and `preview`."""

from __future__ import annotations

import datetime as dt
import itertools
import subprocess
import sys

from collections.abc import Sequence
from typing import Any
from zoneinfo import ZoneInfo

import cronsim
import pytest

from hypothesis import given, strategies as st

import nursery_queue as nq

from nursery_queue._core._when import When


BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
# The day before each change of 2026: into summer time, and out of it.
CHANGES = {
    BERLIN: ("2026-03-28", "2026-10-24"),
    NEW_YORK: ("2026-03-07", "2026-10-31"),
    LORD_HOWE: ("2026-10-03", "2026-04-04"),  # by half an hour
}


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def local(when: When, count: int, after: str) -> list[str]:
    """Return ticks as local time and offset, from midnight of the zone on."""
    start = dt.datetime.fromisoformat(after).replace(tzinfo=when.zone)
    return [f"{tick:%m-%d %H:%M %z}" for tick in nq.preview(when, count, start)]


def minute_by_minute(fields: str, tz: str, start: dt.datetime, days: int) -> list[dt.datetime]:
    """Return the minutes whose local time matches: what it means to follow the clock."""
    matcher = cronsim.CronSim(fields, dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    first = start.replace(second=0, microsecond=0) + dt.timedelta(minutes=1)
    minutes = (first + dt.timedelta(minutes=n) for n in range(days * 1440))
    return [
        minute
        for minute in minutes
        for clock in [minute.astimezone(ZoneInfo(tz))]
        if clock.minute in matcher.minutes and clock.hour in matcher.hours
        if clock.month in matcher.months and matcher.match_day(clock.date())
    ]


@pytest.mark.parametrize(
    ("fields", "tz", "after", "expected"),
    [
        # Skipped: once, right after the gap, however many fall into it.
        ("30 2 * * *", BERLIN, "2026-03-28", ["03-28 02:30 +0100", "03-29 03:00 +0200"]),
        ("0,30 2 * * *", BERLIN, "2026-03-29", ["03-29 03:00 +0200", "03-30 02:00 +0200"]),
        ("0 2,3 * * *", BERLIN, "2026-03-29", ["03-29 03:00 +0200", "03-30 02:00 +0200"]),
        ("30 2 * * *", NEW_YORK, "2026-03-08", ["03-08 03:00 -0400", "03-09 02:30 -0400"]),
        ("15 2 * * *", LORD_HOWE, "2026-10-04", ["10-04 02:30 +1100", "10-05 02:15 +1100"]),
        # Repeated: once, the first time.
        ("30 2 * * *", BERLIN, "2026-10-25", ["10-25 02:30 +0200", "10-26 02:30 +0100"]),
        ("30 1 * * *", NEW_YORK, "2026-11-01", ["11-01 01:30 -0400", "11-02 01:30 -0500"]),
        ("45 1 * * *", LORD_HOWE, "2026-04-05", ["04-05 01:45 +1100", "04-06 01:45 +1030"]),
        # With a wildcard: not in the gap, and both in the repeated hour.
        ("30 * 29 3 *", BERLIN, "2026-03-29T01:00", ["03-29 01:30 +0100", "03-29 03:30 +0200"]),
        ("*/30 2 * * *", BERLIN, "2026-03-29", ["03-30 02:00 +0200", "03-30 02:30 +0200"]),
        (
            "30 * * * *",
            BERLIN,
            "2026-10-25T02:00",
            ["10-25 02:30 +0200", "10-25 02:30 +0100", "10-25 03:30 +0100"],
        ),
        (
            "*/15 * * * *",
            LORD_HOWE,
            "2026-04-05T01:30",
            ["04-05 01:45 +1100", "04-05 01:30 +1030", "04-05 01:45 +1030", "04-05 02:00 +1030"],
        ),
        ("*/15 * * * *", LORD_HOWE, "2026-10-04T01:45", ["10-04 02:30 +1100"]),
    ],
)
def test_daylight_saving(fields: str, tz: str, after: str, expected: Sequence[str]) -> None:
    """A skipped local time counts right after the gap, a repeated one once; wildcards follow."""
    assert local(nq.Cron(fields, tz), len(expected), after) == expected


FOLLOWING = ["*/15 * * * *", "* 2 * * *", "*/7 1-3 * * *", "5 */2 * * *", "* 1 * * SUN", "@hourly"]


@pytest.mark.parametrize("seconds", [7, 7.5, 0.000001])
@pytest.mark.parametrize("tz", CHANGES)
@pytest.mark.parametrize("expression", FOLLOWING)
def test_wildcards_follow_the_clock(tz: str, expression: str, seconds: float) -> None:
    """Over both changes there is a tick in every minute whose local time matches, and no other.

    Whatever fraction of a second it begins at.
    """
    fields = {"@hourly": "0 * * * *"}.get(expression, expression)
    for day in CHANGES[tz]:
        start = utc(day) + dt.timedelta(hours=3, seconds=seconds)
        expected = minute_by_minute(fields, tz, start, 4)

        assert nq.preview(nq.Cron(expression, tz), len(expected), start) == expected


@pytest.mark.parametrize("tz", [*CHANGES, "UTC"])
@pytest.mark.parametrize("expression", ["30 2 * * *", "0,30 2 * * *", "30 1-3 * * *", "0 0 * * *"])
def test_as_cronsim_does_it(tz: str, expression: str) -> None:
    """Fixed local times are those of cronsim, which is modelled on Debian's cron, for two years."""
    start = utc("2026-01-01")
    expected = list(
        itertools.islice(cronsim.CronSim(expression, start.astimezone(ZoneInfo(tz))), 2000)
    )

    found = nq.preview(nq.Cron(expression, tz), 2000, start)

    assert [tick.timestamp() for tick in found] == [tick.timestamp() for tick in expected]


def test_since_an_instant_in_the_second_of_two_hours() -> None:
    """A time that has come once does not come again, though the clock shows an earlier one."""
    second_hour = utc("2026-10-25T01:10")  # 02:10 by the clock, for the second time

    (tick,) = nq.preview(nq.Cron("30 2 * * *", BERLIN), 1, second_hour)

    assert tick == utc("2026-10-26T01:30")


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("0 0 29 2 *", "2026-01-01", ["2028-02-29T00:00", "2032-02-29T00:00"]),
        ("59 23 31 12 *", "2026-01-01", ["2026-12-31T23:59", "2027-12-31T23:59"]),
        ("@yearly", "2026-06-01", ["2027-01-01T00:00", "2028-01-01T00:00"]),
        ("@annually", "2026-06-01", ["2027-01-01T00:00"]),
        ("@monthly", "2026-12-02", ["2027-01-01T00:00", "2027-02-01T00:00"]),
        ("@weekly", "2026-12-02", ["2026-12-06T00:00", "2026-12-13T00:00"]),
        ("@daily", "2026-12-31", ["2027-01-01T00:00"]),
        ("@midnight", "2026-12-31", ["2027-01-01T00:00"]),
        (
            "*/25 23 * * *",
            "2026-12-31",
            ["2026-12-31T23:00", "2026-12-31T23:25", "2026-12-31T23:50"],
        ),
        ("0 12 L * *", "2028-02-01", ["2028-02-29T12:00", "2028-03-31T12:00"]),
        ("0 9 * * mon#2", "2026-12-01", ["2026-12-14T09:00"]),
        ("0 9 1 jan,Jul *", "2026-06-01", ["2026-07-01T09:00", "2027-01-01T09:00"]),
        # Either day, unless one of them begins with a star: then both.
        ("0 0 13 * FRI", "2026-11-01", ["2026-11-06T00:00", "2026-11-13T00:00"]),
        ("0 0 */2 * FRI", "2026-11-01", ["2026-11-13T00:00", "2026-11-27T00:00"]),
    ],
)
def test_cron(expression: str, after: str, expected: Sequence[str]) -> None:
    """Leap days, ends of years, steps, names, nicknames and either day are as in Debian's cron."""
    found = nq.preview(nq.Cron(expression), len(expected), utc(after))

    assert found == [utc(each) for each in expected]


@pytest.mark.parametrize(
    ("expression", "quoted"),
    [
        ("61 * * * *", "'61' is no minute"),
        ("* 24 * * *", "'24' is no hour"),
        ("* * 0 * *", "'0' is no day of month"),
        ("* * * foo *", "'foo' is no month"),
        ("* * * * 8", "'8' is no day of week"),
        ("*/0 * * * *", "'*/0' is no minute"),
        ("1,,2 * * * *", "'1,,2' is no minute"),
        ("0 0 * * 6-2", "'6-2' is no day of week"),
        ("5#2/2 * * * *", "'5#2/2' is no minute"),
        ("*/100 * * * *", "'*/100' is no minute"),
        ("0 0 005 * *", "'005' is no day of month"),
        ("0 ٣ * * *", "'٣' is no hour"),
        ("0 0\x1c0 * * *", r"'0\x1c0' is no hour"),
        ("\x1c0 0 * * *", r"'\x1c0' is no minute"),
        ("0\u00a00 * * * *", r"'0\xa00' is no minute"),
        ("* * * *", "has 4 fields, not five"),
        ("* * * * * *", "has 6 fields, not five"),
        ("", "has 0 fields"),
        ("@reboot", "there is no '@reboot', only @hourly"),
        ("0 0 30 2 *", "stands for no day at all: '30' of '2'"),
        ("1 " * 400, "at most 500 characters"),
    ],
)
def test_no_cron_expression(expression: str, quoted: str) -> None:
    """What is no expression is refused where it is written, and the part at fault is quoted."""
    with pytest.raises(ValueError, match="cron expression") as raised:
        nq.Cron(expression)

    assert quoted in str(raised.value)


@pytest.mark.parametrize("tz", ["Mars/Olympus", "", "../etc/passwd", "Europe", "\0"])
def test_no_time_zone(tz: str) -> None:
    """A zone that is not known is refused where it is written, and quoted."""
    with pytest.raises(ValueError, match="there is no time zone") as raised:
        nq.Cron("@daily", tz=tz)

    assert repr(tz) in str(raised.value)


@pytest.mark.parametrize(
    ("seconds", "error"),
    [
        (0.5, ValueError),
        (0, ValueError),
        (-60, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (dt.timedelta(milliseconds=999), ValueError),
        ("60", TypeError),
        (True, TypeError),
    ],
)
def test_no_distance(seconds: Any, error: type[Exception]) -> None:
    """Less than a second, or no number, is refused."""
    with pytest.raises(error):
        nq.Every(seconds)


def test_a_naive_anchor() -> None:
    """An anchor needs a time zone."""
    with pytest.raises(ValueError, match="anchor must be timezone-aware"):
        nq.Every(60, anchor=dt.datetime(2026, 1, 1))  # noqa: DTZ001  # that is what is refused


@pytest.mark.parametrize("year", [1, 9999])
def test_an_anchor_that_no_database_knows(year: int) -> None:
    """An anchor is an instant that is one everywhere, in any time zone."""
    with pytest.raises(ValueError, match="anchor must be within the years 2 to 9998"):
        nq.Every(60, anchor=dt.datetime(year, 1, 1, tzinfo=dt.UTC))


INSTANTS = st.integers(-(2**31), 2**32).map(
    lambda seconds: dt.datetime.fromtimestamp(seconds, dt.UTC)
)


@given(
    st.floats(1, 1e6),
    INSTANTS,
    INSTANTS,
)
def test_every(seconds: float, anchor: dt.datetime, after: dt.datetime) -> None:
    """Ticks lie whole distances from the anchor, before and behind it, and none is left out."""
    step = dt.timedelta(microseconds=round(seconds * 1e6))

    ticks = nq.preview(nq.Every(seconds, anchor=anchor), 3, after)

    assert all((tick - anchor) % step == dt.timedelta() for tick in ticks)
    assert after < ticks[0] <= after + step
    assert ticks[1:] == [ticks[0] + step, ticks[0] + 2 * step]


def test_every_is_anchored_to_the_epoch() -> None:
    """Without an anchor the distance counts from 1970, so an hour is the hour."""
    assert nq.preview(nq.Every(dt.timedelta(hours=1)), 1, utc("2026-05-05T12:00")) == [
        utc("2026-05-05T13:00")
    ]


def test_the_end_of_time() -> None:
    """Where the calendar ends there are no more ticks."""
    late = utc("9999-12-31T23:00")

    assert len(nq.preview(nq.Every(1800), 5, late)) == 1
    assert nq.preview(nq.Cron("0 0 1 1 *"), 5, late) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["* * * * *"], TypeError),
        ([nq.Every(60), -1], ValueError),
        ([nq.Every(60), 1, dt.datetime(2026, 1, 1)], ValueError),  # noqa: DTZ001
    ],
)
def test_no_preview(arguments: list[Any], error: type[Exception]) -> None:
    """What is no `when`, no number or has no time zone is refused."""
    with pytest.raises(error):
        nq.preview(*arguments)


WITHOUT = """
import sys
sys.modules["cronsim"] = None  # as if it were not installed
import nursery_queue as nq
nq.preview(nq.Every(60))
try:
    nq.Cron("@daily").ticks
    nq.Cron("* * * * *")
except ImportError as error:
    print(error)
"""


def test_without_the_extra() -> None:
    """Only a program with cron expressions needs cronsim, and is told what to install."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout == (
        "cron expressions are an extra that is not installed: "
        "pip install 'nursery-queue[schedules]'\n"
    )
