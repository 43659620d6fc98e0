"""`queues`, and `tasks cancel` of all that fit a description."""

from __future__ import annotations

import pytest

from tests.cli.printed import lines, objects
from tests.cli.runs import Run
from tests.support.command_line import rows


STATES = "select id, state from nursery_queue.task_status order by id"


@pytest.fixture
def four(migrated: str) -> str:
    """DSN of a database with two tasks in `default`, one of them later, and two in `mail`."""
    rows(
        migrated,
        "insert into nursery_queue.task (task_type, queue, run_at, created_at) values"
        " ('hello', 'default', now(), now() - interval '3 hours'),"
        " ('hello', 'default', now() + interval '1 day', now()),"
        " ('hello', 'mail', now(), now() - interval '1 hour'),"
        " ('send', 'mail', now(), now())",
    )
    return migrated


# -- queues --------------------------------------------------------------------------------------


def test_list(quick: Run, four: str) -> None:
    """One queue a line: those with live tasks, and those that are set in some way."""
    quick("queues", "pause", "mail")
    quick("queues", "limit", "idle", "3", "--rate", "1000/60+20", "--rate-per-key", "1/0.5")

    assert lines(quick("queues", "list").stdout) == [
        ["default", "no", "", "1", "1", "0", "yes", "", "", ""],
        ["idle", "no", "3", "0", "0", "0", "yes", "", "1000/60+20", "1/0.5"],
        ["mail", "yes", "", "0", "2", "0", "yes", "", "", ""],
    ]
    assert objects(quick("queues", "list", "--json").stdout)[2] == {
        "name": "mail",
        "paused": True,
        "max_running": None,
        "scheduled": 0,
        "ready": 2,
        "running": 0,
        "notify": True,
        "max_running_per_key": None,
        "rate": None,
        "rate_per_key": None,
    }


def test_no_queues(quick: Run) -> None:
    """Where there are none, there is nothing on stdout, and it is no error."""
    for options in ([], ["--json"]):
        done = quick("queues", "list", *options)
        assert (done.returncode, done.stdout) == (0, "")


def test_pause_and_resume(quick: Run, four: str) -> None:
    """Each queue is printed as it is now, in the order asked; twice does no harm."""
    paused = quick("queues", "pause", "mail", "default", "mail")
    again = quick("queues", "pause", "mail", "--json")
    resumed = quick("queues", "resume", "mail")

    assert [line[:2] for line in lines(paused.stdout)] == [["mail", "yes"], ["default", "yes"]]
    assert [each["paused"] for each in objects(again.stdout)] == [True]
    assert lines(resumed.stdout) == [["mail", "no", "", "0", "2", "0", "yes", "", "", ""]]
    settings = "select name, paused, max_running from nursery_queue.queue order by name"
    assert rows(four, settings) == [("default", True, None), ("mail", False, None)]


def test_resume_of_a_queue_that_nobody_knows(quick: Run) -> None:
    """A queue without tasks and settings is open, which is no error."""
    line = ["new", "no", "", "0", "0", "0", "yes", "", "", ""]
    assert lines(quick("queues", "resume", "new").stdout) == [line]


def test_limit(quick: Run, four: str) -> None:
    """A limit is set, lowered to nothing and taken away; a pause beside it stays."""
    quick("queues", "pause", "mail")
    for given, stored in [("5", 5), ("0", 0), ("none", None)]:
        done = quick("queues", "limit", "mail", given, "--json")

        assert [each["max_running"] for each in objects(done.stdout)] == [stored]
        assert rows(four, "select paused, max_running from nursery_queue.queue") == [(True, stored)]


RATE = "select rate_count, rate_per, rate_burst from nursery_queue.queue"
KEY_RATE = "select key_rate_count, key_rate_per, key_rate_burst from nursery_queue.queue"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("1000/60", (1000, 60.0, 0)),
        ("1000/60+20", (1000, 60.0, 20)),
        ("1000 / 60 + 20", (1000, 60.0, 20)),
        ("3/1m", (3, 60.0, 0)),
        ("3/1.5h+1", (3, 5400.0, 1)),
        ("1/200ms", (1, 0.2, 0)),
        ("1/0.5", (1, 0.5, 0)),
        ("1/1e-06", (1, 1e-06, 0)),
        ("none", (None, None, None)),
    ],
)
@pytest.mark.parametrize(("option", "question"), [("--rate", RATE), ("--rate-per-key", KEY_RATE)])
def test_rates(
    quick: Run, four: str, option: str, question: str, given: str, stored: object
) -> None:
    """A rate is so many in so much time, and some more that may be early; "none" takes it away."""
    quick("queues", "limit", "mail", option, "7/8+9")
    done = quick("queues", "limit", "mail", option, given, "--json")

    (shown,) = objects(done.stdout)
    rate = shown["rate" if option == "--rate" else "rate_per_key"]
    assert (tuple(rate.values()) if rate else (None,) * 3) == stored
    assert rows(four, question) == [stored]


def test_several_limits(quick: Run, four: str) -> None:
    """All that is given is set in one command, and what is not given stays."""
    shown: list[object] = []
    for given in (
        ["--max-running", "50", "--max-running-per-key", "2"],
        ["--rate", "1000/60", "--rate-per-key", "100/60+20"],
        ["none", "--max-running-per-key", "0", "--rate", "none"],
    ):
        done = quick("queues", "limit", "mail", *given)
        ((_, _, most, _, _, _, _, *others),) = lines(done.stdout)
        shown.append([most, *others])

    assert shown == [
        ["50", "2", "", ""],
        ["50", "2", "1000/60", "100/60+20"],
        ["", "0", "", "100/60+20"],
    ]


def test_notify(quick: Run, four: str) -> None:
    """Waking the workers at an enqueue is switched off and on; a limit beside it stays."""
    quick("queues", "limit", "mail", "5")
    for given, stored in [("off", False), ("on", True)]:
        done = quick("queues", "notify", "mail", given, "--json")

        assert [each["notify"] for each in objects(done.stdout)] == [stored]
        assert rows(four, "select max_running, notify from nursery_queue.queue") == [(5, stored)]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["limit", "mail"], "Give N, --max-running"),
        (["limit", "mail", "1", "--max-running", "1"], "give one of them"),
        (["limit", "mail", "none", "--max-running", "none"], "give one of them"),
        (["limit", "mail", "--max-running-per-key", "-1"], "'none' takes it away"),
        (["limit", "mail", "--rate", "100"], "write COUNT/SECONDS"),
        (["limit", "mail", "--rate", "100/"], "write COUNT/SECONDS"),
        (["limit", "mail", "--rate", "100/60+"], "write COUNT/SECONDS"),
        (["limit", "mail", "--rate", "1.5/60"], "write COUNT/SECONDS"),
        (["limit", "mail", "--rate", "1/60+1.5"], "write COUNT/SECONDS"),
        (["limit", "mail", "--rate", "1/3w"], "no duration"),
        (["limit", "mail", "--rate", "1/..."], "no duration"),
        (["limit", "mail", "--rate", "0/60"], "count must be between 1"),
        (["limit", "mail", "--rate", "1/0"], "more than 0"),
        (["limit", "mail", "--rate", "9999999/1"], "at most 1,000,000 starts a second"),
        (["limit", "mail", "--rate-per-key", "many"], "'none' takes it away"),
        (["limit", "mail", "many"], "'none' takes it away"),
        (["limit", "mail", "1.5"], "'none' takes it away"),
        (["limit", "mail", "--", "-1"], "'none' takes it away"),
        (["limit", "mail", str(2**31)], "'none' takes it away"),
        (["limit", "", "1"], "printable"),
        (["notify", "mail"], "Missing argument"),
        (["notify", "mail", "maybe"], "'on', 'off'"),
        (["pause"], "Missing argument"),
        (["pause", "a\tb"], "printable"),
        (["resume", ""], "printable"),
    ],
)
def test_what_makes_no_sense_is_2(quick: Run, migrated: str, args: list[str], said: str) -> None:
    """Usage errors say what they are about, and set nothing."""
    done = quick("queues", *args)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert rows(migrated, "select * from nursery_queue.queue") == []


# -- cancel all that fit -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "ids"),
    [
        (["--queue", "mail"], {3, 4}),
        (["--type", "hello"], {1, 2, 3}),
        (["--queue", "mail", "--type", "hello"], {3}),
        (["--queue", "mail", "--all"], {3, 4}),
        (["--before", "2h"], {1}),
        (["--before", "90m"], {1}),
        (["--before", "10min"], None),
        (["--before", "2000-01-01T00:00Z"], set[int]()),
        (["--before", "9000-01-01T00:00+01:00"], {1, 2, 3, 4}),
        (["--queue", "nothing-there"], set[int]()),
        (["--all"], {1, 2, 3, 4}),
    ],
)
def test_filters(quick: Run, four: str, args: list[str], ids: set[int] | None) -> None:
    """Filters combine; a dry run counts and touches nothing; how many they were is printed."""
    before = rows(four, STATES)
    dry = quick("tasks", "cancel", "--dry-run", *args)
    untouched = rows(four, STATES) == before
    done = quick("tasks", "cancel", *args)
    cancelled = {task_id for task_id, state in rows(four, STATES) if state == "cancelled"}

    assert untouched
    if ids is None:
        assert (dry.returncode, done.returncode, cancelled) == (2, 2, set())
    else:
        assert (dry.returncode, dry.stdout) == (0, f"{len(ids)}\n")
        assert (done.returncode, done.stdout, cancelled) == (0, f"{len(ids)}\n", ids)


def test_the_count_as_json(quick: Run, four: str) -> None:
    """--json says how many, and whether it was only asked."""
    dry = quick("tasks", "cancel", "--queue", "mail", "--dry-run", "--json")
    done = quick("tasks", "cancel", "--queue", "mail", "--json")
    again = quick("tasks", "cancel", "--queue", "mail", "--json")

    assert objects(dry.stdout + done.stdout + again.stdout) == [
        {"count": 2, "dry_run": True},
        {"count": 2, "dry_run": False},
        {"count": 0, "dry_run": False},
    ]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "--all"),
        (["--dry-run"], "--all"),
        (["1", "--queue", "mail"], "not both"),
        (["1", "--all"], "not both"),
        (["1", "--dry-run"], "not both"),
        (["--queue", ""], "printable"),
        (["--type", ""], "printable"),
        (["--before", "2030-01-01T00:00"], "an age such as 2h"),
        (["--before", "2030"], "an age such as 2h"),
        (["--before", "-2h"], "an age such as 2h"),
        (["--before", "2 weeks"], "no duration"),
        (["--before", "200000d"], "100 years"),
        (["--queue", "mail", "--let-finish"], "ids alone"),
    ],
)
def test_what_cannot_be_meant_is_2(quick: Run, four: str, args: list[str], said: str) -> None:
    """Whoever names nothing, or two things at once, is told so, and nothing is cancelled."""
    before = rows(four, STATES)
    done = quick("tasks", "cancel", *args)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert rows(four, STATES) == before
