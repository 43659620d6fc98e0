"""`schedules`: looked at, previewed, steered, backfilled."""

from __future__ import annotations

import datetime as dt
import re

import pytest

from tests.cli.printed import lines, objects
from tests.cli.runs import Run
from tests.support.command_line import rows


NIGHTLY = (
    "insert into nursery_queue.schedule (name, cron, tz, task_type, params, queue) values"
    " ('nightly report', '0 3 * * *', 'Europe/Berlin', 'report', '{\"kind\": \"daily\"}', 'mail')"
)
BEAT = "insert into nursery_queue.schedule (name, every, task_type) values ('beat', 60, 'ping')"


@pytest.fixture
def two(migrated: str) -> str:
    """DSN of a database with two schedules, made by plain SQL."""
    rows(migrated, NIGHTLY)
    rows(migrated, BEAT)
    return migrated


def test_list(quick: Run, two: str) -> None:
    """One schedule a line: when it fires, how it stands, what it has done."""
    beat, nightly = lines(quick("schedules", "list").stdout)

    assert beat[:4] == ["beat", "every 60 s", "UTC", "on"]
    assert nightly[:4] == ["nightly report", "0 3 * * *", "Europe/Berlin", "on"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", nightly[4])
    assert nightly[5:] == ["", "0", "0", "report", "mail", "runtime", ""]
    first, second = objects(quick("schedules", "list", "--json").stdout)
    assert (first["name"], first["when"], first["paused"]) == ("beat", "every 60 s", False)
    assert (second["when"], second["tz"]) == ("0 3 * * *", "Europe/Berlin")


def test_no_schedules(quick: Run) -> None:
    """Where there are none, there is nothing on stdout, and it is no error."""
    for options in ([], ["--json"]):
        done = quick("schedules", "list", *options)
        assert (done.returncode, done.stdout) == (0, "")


def test_show(quick: Run, two: str) -> None:
    """All that is known of each, and 1 if one of them is unknown."""
    done = quick("schedules", "show", "nightly report", "unheard of")

    assert done.returncode == 1
    assert "there is no schedule 'unheard of'" in done.stderr
    assert re.search(r'(?m)^params: +{"kind": "daily"}$', done.stdout)
    assert re.search(r"(?m)^state: +on$", done.stdout)
    (shown,) = objects(quick("schedules", "show", "beat", "--json").stdout)
    assert (shown["task_type"], shown["misfire"], shown["source"]) == ("ping", "latest", "runtime")


def test_preview(quick: Run) -> None:
    """The next ticks in local time, without a database."""
    nowhere = {"NURSERY_QUEUE_DSN": "postgresql://nowhere.invalid/none"}
    berlin = ("schedules", "preview", "30 2 * * *", "--tz", "Europe/Berlin")
    after = ("--after", "2026-03-28T00:00Z", "--count", "2")

    done = quick(*berlin, *after, env=nowhere)

    assert done.stdout.splitlines() == ["2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00"]
    assert objects(quick(*berlin, *after, "--json", env=nowhere).stdout)[1] == {
        "tick": "2026-03-29T03:00:00+02:00",
        "utc": "2026-03-29T01:00:00+00:00",
    }
    assert len(quick("schedules", "preview", "10m").stdout.splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["61 * * * *"], "'61' is no minute"),
        (["@daily", "--tz", "Mars/Olympus"], "no time zone 'Mars/Olympus'"),
        (["0.1"], "at least 1 second"),
        (["@daily", "--after", "2026-01-01"], "no instant with a time zone"),
    ],
)
def test_no_preview(quick: Run, arguments: list[str], said: str) -> None:
    """What is no expression, zone or instant is a usage error, which quotes it."""
    done = quick("schedules", "preview", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_pause_and_resume(quick: Run, two: str) -> None:
    """Each is printed as it is now; 1 if one of them is unknown."""
    paused = quick("schedules", "pause", "beat", "nightly report", "x")
    resumed = quick("schedules", "resume", "beat", "--json")

    assert [line[:4:3] for line in lines(paused.stdout)] == [
        ["beat", "paused"],
        ["nightly report", "paused"],
    ]
    assert (paused.returncode, "no schedule 'x'" in paused.stderr) == (1, True)
    assert [each["paused"] for each in objects(resumed.stdout)] == [False]
    settings = "select name, paused from nursery_queue.schedule order by name"
    assert rows(two, settings) == [("beat", False), ("nightly report", True)]


def test_delete(quick: Run, two: str) -> None:
    """What was there is deleted and named."""
    done = quick("schedules", "delete", "beat", "x")

    assert (done.returncode, done.stdout) == (1, "beat\n")
    assert rows(two, "select name from nursery_queue.schedule") == [("nightly report",)]


def test_trigger(quick: Run, two: str) -> None:
    """Its task is enqueued now, and its id printed; of an unknown one there is none."""
    done = quick("schedules", "trigger", "nightly report")

    asked = "select id::text, task_type, params, queue from nursery_queue.task"
    assert rows(two, asked) == [(done.stdout.strip(), "report", {"kind": "daily"}, "mail")]
    unknown = quick("schedules", "trigger", "x")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "there is no schedule 'x'" in unknown.stderr


def test_backfill(quick: Run, two: str) -> None:
    """The ticks of a time get their tasks, once each; a dry run says how many."""
    hour = ("--since", "2h", "--until", dt.datetime.now(dt.UTC).isoformat())

    dry = quick("schedules", "backfill", "beat", *hour, "--dry-run")
    done = quick("schedules", "backfill", "beat", *hour)
    again = quick("schedules", "backfill", "beat", *hour, "--json")

    assert int(dry.stdout) == 120
    assert int(done.stdout) in {119, 120}  # 2 h are counted from a moment later
    (answer,) = objects(again.stdout)
    assert (answer["count"] <= 1, answer["dry_run"]) == (True, False)
    assert rows(two, "select count(distinct tick) = count(*) from nursery_queue.task") == [(True,)]


def test_a_backfill_of_no_time(quick: Run, two: str) -> None:
    """A time that ends before it begins is a slip of the pen."""
    done = quick("schedules", "backfill", "beat", "--since", "1h", "--until", "3h")

    assert (done.returncode, done.stdout) == (2, "")
    assert "--since is later than --until" in done.stderr


def test_no_backfill(quick: Run, two: str) -> None:
    """Too many, too long ago, or unknown: it says so, and enqueues nothing."""
    many = quick("schedules", "backfill", "beat", "--since", "8d")
    old = quick("schedules", "backfill", "nightly report", "--since", "40d")
    repeated = quick("schedules", "backfill", "nightly report", "--since", "40d", "--repeat")
    unknown = quick("schedules", "backfill", "x", "--since", "1h")

    assert (many.returncode, "at most 10,000" in many.stderr) == (1, True)
    assert (old.returncode, "30 days" in old.stderr) == (1, True)
    assert repeated.returncode == 0
    assert int(repeated.stdout) in {39, 40, 41}  # the clocks may have been changed in that time
    assert (unknown.returncode, "no schedule 'x'" in unknown.stderr) == (1, True)
