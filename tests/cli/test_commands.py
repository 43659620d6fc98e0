from __future__ import annotations

import datetime as dt
import json
import re

from uuid import uuid4

import pytest

from psycopg.conninfo import make_conninfo

from nursery_queue import Stats, UnknownTypeStats, WorkerStatus
from nursery_queue._core._counters import Counters
from nursery_queue.cli._overview import Overview
from nursery_queue.cli._status import records
from tests.cli.printed import lines, objects
from tests.cli.runs import Run
from tests.support.command_line import rows


# -- migrate -------------------------------------------------------------------------------


def test_migrate_from_nothing_and_back(quick: Run, dsn: str) -> None:
    """Up applies what is missing, list and check see it, down undoes it."""
    env = {"NURSERY_QUEUE_DSN": dsn}
    listed = lines(quick("migrate", "list", env=env).stdout)
    up = quick("migrate", "up", env=env)
    again = quick("migrate", "up", env=env)
    check = quick("migrate", "check", env=env)
    after = objects(quick("migrate", "list", "--json", env=env).stdout)
    down = quick("migrate", "down", "--yes", env=env)
    gone = quick("migrate", "check", env=env)

    assert {row[2] for row in listed} == {"pending"}
    assert [row[:2] for row in lines(up.stdout)] == [row[:2] for row in listed]
    assert (again.returncode, again.stdout) == (0, "")
    assert (check.returncode, check.stdout) == (0, "")
    assert {each["state"] for each in after} == {"applied"}
    assert down.stdout.count("\tpending\n") == len(listed)
    assert gone.returncode == 2


def test_down_wants_to_be_sure(quick: Run, migrated: str) -> None:
    """Without --to or --yes nothing is deleted, and the database is named."""
    done = quick("migrate", "down")

    assert done.returncode == 2
    assert "--to N" in done.stderr
    assert "--yes" in done.stderr
    assert "nursery_queue_test_" in done.stderr
    assert rows(migrated, "select count(*) > 0 from nursery_queue.migration") == [(True,)]


def test_down_to_the_present_version_does_nothing(quick: Run, migrated: str) -> None:
    """--to N keeps version N and what is below it."""
    ((version,),) = rows(migrated, "select max(version) from nursery_queue.migration")

    done = quick("migrate", "down", "--to", str(version))

    assert done.returncode == 0
    assert "nothing to do" in done.stderr
    assert quick("migrate", "check").returncode == 0


def test_migrations_have_their_own_schema(quick: Run, dsn: str) -> None:
    """--schema says where the tables go, and others are not touched."""
    env = {"NURSERY_QUEUE_DSN": dsn}
    assert quick("migrate", "up", "--schema", "jobs", env=env).returncode == 0

    assert quick("migrate", "check", "--schema", "jobs", env=env).returncode == 0
    assert quick("migrate", "check", env=env).returncode == 2
    assert quick("enqueue", "hello", env={**env, "NURSERY_QUEUE_SCHEMA": "jobs"}).stdout == "1\n"
    assert rows(dsn, "select task_type from jobs.task") == [("hello",)]


def test_the_printed_sql_is_what_up_does(quick: Run, dsn: str) -> None:
    """The script of `migrate sql`, run by other means, makes a schema that passes the check."""
    script = quick("migrate", "sql", env={"NURSERY_QUEUE_DSN": "host=nowhere.invalid"})

    rows(dsn, script.stdout)

    assert quick("migrate", "check", "--dsn", dsn).returncode == 0


def test_list_names_what_is_odd(quick: Run, migrated: str) -> None:
    """Migrations that this code does not know, or knows otherwise, are told apart."""
    rows(migrated, "insert into nursery_queue.migration values (9999, 'later', 'x')")
    rows(migrated, "update nursery_queue.migration set checksum = 'y' where version = 1")

    states = [row[2] for row in lines(quick("migrate", "list").stdout)]

    assert states[0] == "edited"
    assert states[-1] == "unknown"


# -- enqueue -------------------------------------------------------------------------------


def test_enqueue_stores_what_was_said(quick: Run, migrated: str) -> None:
    """Every option arrives in the task's row; the id is all there is on stdout."""
    options = ["--queue", "mail", "--priority", "7", "--max-attempts", "3"]
    options += ["--timeout", "1m", "--keep-for", "2h", "--dedup-key", "k"]
    options += ["--key", "c-17", "--dedup-for", "1m"]

    done = quick("enqueue", "hello", '{"name": "ü"}', *options)

    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    (row,) = rows(
        migrated,
        "select task_type, params, queue, priority, max_attempts, timeout, keep_for, dedup_key,"
        " key, dedup_for from nursery_queue.task",
    )
    assert row == ("hello", {"name": "ü"}, "mail", 7, 3, 60.0, 7200.0, "k", "c-17", 60.0)


def test_enqueue_without_options_leaves_all_to_the_code(quick: Run, migrated: str) -> None:
    """What was not said is null, which means: as the handler's code has it."""
    quick("enqueue", "hello")

    (row,) = rows(
        migrated, "select queue, params, max_attempts, timeout, keep_for from nursery_queue.task"
    )
    assert row == ("default", {}, None, None, None)


def test_enqueue_without_a_time_limit(quick: Run, migrated: str) -> None:
    """`--timeout none` is said, unlike no --timeout: it is stored."""
    assert quick("enqueue", "hello", "--timeout", "none").returncode == 0
    assert quick("enqueue", "hello", "--timeout", "0").returncode == 2
    assert rows(migrated, "select timeout from nursery_queue.task") == [(float("inf"),)]


def test_enqueue_reads_stdin(quick: Run, migrated: str) -> None:
    """`-` takes the params from stdin."""
    done = quick("enqueue", "hello", "-", stdin='{"name":\n "pipe"}\n')

    assert done.returncode == 0
    assert rows(migrated, "select params from nursery_queue.task") == [({"name": "pipe"},)]


@pytest.mark.parametrize("context", ['{"a": [1, null]}', '"text"', "0", "[]"])
def test_enqueue_asks_to_be_told(quick: Run, migrated: str, context: str) -> None:
    """The name of whom to tell arrives, and so does what it is told besides, as JSON."""
    assert quick("enqueue", "hello", "--on-complete", "done", "--context", context).stdout == "1\n"

    (row,) = rows(migrated, "select on_complete->>'task_type', context from nursery_queue.task")
    assert row == ("done", json.loads(context))


def test_a_cancel_tells_without_a_worker(quick: Run, migrated: str) -> None:
    """Whom the task was to tell is told of its cancellation, though no worker is alive."""
    quick("enqueue", "hello", "--on-complete", "done", "--context", "5")
    quick("tasks", "cancel", "1")

    (row,) = rows(migrated, "select task_type, params from nursery_queue.task where id > 1")
    result = {"status": "cancelled", "reason": "cancelled while waiting"}
    assert row == ("done", {"task_id": 1, "context": 5, "result": result})


@pytest.mark.parametrize("option", [("--run-after", "1h"), ("--run-at", "2100-01-01T00:00Z")])
def test_enqueue_for_later(quick: Run, option: tuple[str, str]) -> None:
    """A task with a time to come is scheduled, not ready."""
    quick("enqueue", "hello", *option)

    (task,) = objects(quick("tasks", "list", "--json").stdout)
    assert task["state"] == "scheduled"


def test_enqueue_twice_with_one_dedup_key(quick: Run) -> None:
    """The second one gets the first one's id and is told so."""
    first = quick("enqueue", "hello", "--dedup-key", "k", "--json")
    second = quick("enqueue", "hello", "--dedup-key", "k", "--json")

    assert objects(first.stdout) == [{"id": 1, "created": True}]
    assert objects(second.stdout) == [{"id": 1, "created": False}]
    assert "live already" in second.stderr


def test_enqueue_debounced(quick: Run, migrated: str) -> None:
    """The second call replaces the first one's params, and is told so."""
    usual = ["--dedup-key", "k", "--debounce", "1h", "--debounce-max", "2h"]
    first = quick("enqueue", "hello", '{"n": 1}', *usual)
    second = quick("enqueue", "hello", '{"n": 2}', *usual)

    assert (first.stdout, first.stderr) == ("1\n", "")
    assert second.stdout == "1\n"
    assert "was replaced, and waits anew" in second.stderr
    assert rows(migrated, "select params from nursery_queue.task") == [({"n": 2},)]


def test_a_list_with_keys(quick: Run) -> None:
    """`tasks list --long`, `tasks show` and JSON say keys and attempts allowed."""
    options = ["--key", "c-17", "--dedup-key", "k", "--max-attempts", "3"]
    quick("enqueue", "hello", *options)

    assert quick("tasks", "list", "--long").stdout.rstrip("\n").split("\t")[-4:-1] == [
        "c-17",
        "k",
        "3",
    ]
    shown = quick("tasks", "show", "1").stdout
    assert [word in shown for word in ("c-17", "dedup key", "max attempts")] == [True] * 3
    (task,) = objects(quick("tasks", "list", "--json").stdout)
    assert (task["key"], task["dedup_key"], task["max_attempts"]) == ("c-17", "k", 3)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--debounce-max", "5"], "--debounce-max needs --debounce"),
        (["--debounce", "5"], "no dedup_key"),
        (["--dedup-for", "5"], "no dedup_key"),
        (["--key", "x" * 201], "at most 200 bytes"),
        (["--dedup-key", "k", "--debounce", "5", "--debounce-max", "4"], "max_wait"),
        (["{bad"], "that is not JSON"),
        (["[1]"], "a JSON object"),
        (["3"], "a JSON object"),
        (['{"x": NaN}'], "NaN"),
        (["--run-at", "2030-01-01T00:00"], "time zone"),
        (["--run-at", "soon"], "time zone"),
        (["--run-after", "-5"], "no duration"),
        (["--run-after", "5 weeks"], "no duration"),
        (["--run-after", "1h", "--run-at", "2100-01-01T00:00Z"], "not both"),
        (["--priority", "99999999999"], "--priority"),
        (["--max-attempts", "0"], "--max-attempts"),
        (["--max-attempts", "many"], "--max-attempts"),
        (["--queue", ""], "queue must be"),
        (["--on-complete", ""], "--on-complete"),
        (["--on-complete", "done", "--context", "{bad"], "that is not JSON"),
        (["--on-complete", "done", "--context", "NaN"], "NaN"),
        (["--app", "shop:app", "--context", "5"], "no on_complete"),
    ],
)
def test_what_cannot_be_enqueued_is_2(quick: Run, args: list[str], said: str) -> None:
    """Params and options that make no sense are usage errors; nothing is stored."""
    done = quick("enqueue", "hello", *args)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_params_that_are_too_large_are_2(quick: Run) -> None:
    """More than a megabyte of params is refused, with task, size and limit."""
    done = quick("enqueue", "hello", "-", stdin=json.dumps({"name": "x" * 1_000_001}))

    assert done.returncode == 2
    assert "1000000" in done.stderr


# -- tasks and status ----------------------------------------------------------------------


@pytest.fixture
def tasks(quick: Run, cli: Run) -> None:
    """Tasks 1 (succeeded), 2 (failed), 3 (ready, nobody knows it) and 4 (scheduled)."""
    quick("enqueue", "hello")
    quick("enqueue", "fails")
    assert cli("worker", "shop:app", "--drain").returncode == 0
    quick("enqueue", "nobody", "--queue", "mail")
    quick("enqueue", "hello", "--run-after", "1h")


@pytest.mark.usefixtures("tasks")
class TestSomeTasks:
    def test_list(self, quick: Run) -> None:
        """One task a line, newest first; control characters are spelled out."""
        table = lines(quick("tasks", "list").stdout)

        assert [row[:4] for row in table] == [
            ["4", "scheduled", "hello", "default"],
            ["3", "ready", "nobody", "mail"],
            ["2", "failed", "fails", "default"],
            ["1", "succeeded", "hello", "default"],
        ]
        assert table[2][-1] == r"ValueError: tab\there, escape\x1b[31m, markup [red]x[/red]"

    @pytest.mark.parametrize(
        ("args", "ids"),
        [
            (["--state", "failed"], [2]),
            (["--queue", "mail"], [3]),
            (["--type", "hello"], [4, 1]),
            (["--limit", "2"], [4, 3]),
            (["--after", "3"], [2, 1]),
            (["--type", "hello", "--after", "4", "--limit", "1"], [1]),
            (["--queue", "nothing-there"], []),
        ],
    )
    def test_list_of_some(self, quick: Run, args: list[str], ids: list[int]) -> None:
        """Filters and pages combine."""
        found = objects(quick("tasks", "list", "--json", *args).stdout)

        assert [task["id"] for task in found] == ids

    def test_show(self, quick: Run) -> None:
        """All about a task, its attempts included; the traceback line by line."""
        text = quick("tasks", "show", "2").stdout

        assert "state:       failed" in text
        assert "params:      {" in text
        assert "attempt 1: failed" in text
        assert "Traceback" in text
        assert "\x1b" not in text

    def test_show_as_json(self, quick: Run) -> None:
        """One object a task, with what its handler returned and its attempts."""
        first, second = objects(quick("tasks", "show", "1", "2", "--json").stdout)

        assert first["result"] == "hello you"
        assert [each["outcome"] for each in first["attempts"]] == ["succeeded"]
        assert second["attempts"][0]["error_type"] == "ValueError"

    def test_show_what_is_not_there(self, quick: Run) -> None:
        """An id that nobody has is an error, and the others are shown all the same."""
        done = quick("tasks", "show", "99", "1", "--json")

        assert done.returncode == 1
        assert [task["id"] for task in objects(done.stdout)] == [1]
        assert "no task 99" in done.stderr

    def test_cancel(self, quick: Run) -> None:
        """What waits is cancelled; what has ended is an error, and does not stop the rest."""
        done = quick("tasks", "cancel", "1", "3", "4", "99")

        assert done.returncode == 1
        assert lines(done.stdout) == [["3", "cancelled"], ["4", "cancelled"]]
        assert "task 1 has ended already (succeeded)" in done.stderr
        assert "task 99 never existed" in done.stderr

    def test_retry(self, quick: Run) -> None:
        """What failed goes again; what waits cannot."""
        done = quick("tasks", "retry", "2", "3", "--json")

        assert done.returncode == 1
        assert objects(done.stdout) == [
            {"id": 2, "done": True, "state": "ready"},
            {"id": 3, "done": False, "state": "ready"},
        ]

    @pytest.mark.parametrize("task_id", ["0", "x", "-1", str(2**63)])
    def test_no_id(self, quick: Run, task_id: str) -> None:
        """What cannot be an id is a usage error."""
        assert quick("tasks", "show", "--", task_id).returncode == 2

    def test_status(self, quick: Run) -> None:
        """Counts by queue and state, what nobody knows, and attempts; no workers are left."""
        table = lines(quick("status").stdout)

        assert [row[:3] if row[0] == "unknown_task_type" else row for row in table] == [
            ["queue", "default", "1", "0", "0", "1", "1", "0", "no", *[""] * 4],
            ["queue", "mail", "0", "1", "0", "0", "0", "0", "no", *[""] * 4],
            ["unknown_task_type", "nobody", "1"],
            ["attempts", "default", "2", "1", "1", "0", "0", "0", "0", "0", "0.5", "0.5"],
            ["attempts", "mail", "0", "0", "0", "0", "0", "0", "0", "1", "0.0", "0.0"],
        ]

    def test_status_as_json(self, quick: Run) -> None:
        """The same, one object a line."""
        found = objects(quick("status", "--json").stdout)

        kinds = ["queue", "queue", "unknown_task_type", "attempts", "attempts"]
        assert [each["kind"] for each in found] == kinds
        assert found[0]["failed"] == 1
        assert (found[0]["paused"], found[0]["max_running"]) == (False, None)
        assert dt.datetime.fromisoformat(found[2]["since"]).tzinfo is not None
        assert found[3]["failure_rate"] == 0.5


def test_status_says_which_queues_are_held_back(quick: Run, migrated: str) -> None:
    """A queue that is paused or limited is shown as such, also one without tasks."""
    rows(migrated, "insert into nursery_queue.task (task_type, queue) values ('hello', 'mail')")
    quick("queues", "pause", "mail")
    quick("queues", "limit", "idle", "3")
    quick("queues", "limit", "slow", "--rate", "3/60")

    held = {
        each["queue"]: (each["paused"], each["max_running"], each["rate"], each["ready"])
        for each in objects(quick("status", "--json").stdout)
        if each["kind"] == "queue"
    }
    assert held == {
        "idle": (False, 3, None, 0),
        "mail": (True, None, None, 1),
        "slow": (False, None, {"count": 3, "per": 60.0, "burst": 0}, 0),
    }
    assert [row[:2] + row[-5:] for row in lines(quick("status").stdout)[:3]] == [
        ["queue", "idle", "no", "3", "", "", ""],
        ["queue", "mail", "yes", "", "", "", ""],
        ["queue", "slow", "no", "", "", "3/60", ""],
    ]


def test_status_explains_what_it_prints(quick: Run) -> None:
    """Its help names every cell of each line, in their order, and every key of each object."""
    text = quick("status", "--help").stdout
    told = {
        kind: re.split(r"[,\s]+", explained.strip(" .\n"))
        for kind, explained in re.findall(
            r"^  (\w+): ((?:.+\n)+?)(?=^  \w+: |^$)", text, re.MULTILINE
        )
    }
    stats = Stats(
        queues={"mail": {}},
        workers=[a_worker()],
        unknown_task_types={"nobody": UnknownTypeStats(1, dt.datetime.now(dt.UTC))},
        counters={"mail": Counters()},
    )
    for record in records(Overview.of(stats, ())):
        kind, *keys = record
        assert told[record[kind]] == keys


def a_worker() -> WorkerStatus:
    now = dt.datetime.now(dt.UTC)
    return WorkerStatus(
        id=uuid4(),
        name="ada",
        host="here",
        pid=1,
        queues=None,
        task_types=["hello"],
        started_at=now,
        heartbeat_at=now,
        draining=False,
        alive=True,
        running=0,
    )


def test_nothing_to_list(quick: Run) -> None:
    """Without tasks there is nothing on stdout, and it is no error."""
    for command in (["tasks", "list"], ["tasks", "list", "--json"], ["status"]):
        done = quick(*command)
        assert (done.returncode, done.stdout) == (0, "")


def test_a_lost_table_is_1(quick: Run, migrated: str) -> None:
    """What the database refuses after letting us in is a problem, told without a traceback."""
    rows(migrated, "alter view nursery_queue.task_status rename to elsewhere")

    done = quick("tasks", "list", "--dsn", make_conninfo(migrated))

    assert done.returncode == 1
    assert "UndefinedTable" in done.stderr
    assert "Traceback" not in done.stderr
