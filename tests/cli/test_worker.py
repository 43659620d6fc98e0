from __future__ import annotations

import gc
import json
import signal

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.runs import Run, Start
from tests.cli.tasks import enqueue
from tests.support.command_line import rows


TERM, INT = signal.SIGTERM, signal.SIGINT


def test_drain_does_what_there_is_and_ends(cli: Run, migrated: str, mark: Path) -> None:
    """--drain works off what is ready, leaves what is not, and ends with 0."""
    for _ in range(50):
        enqueue(migrated, "write", mark=mark)
    enqueue(migrated, "nobody")

    done = cli("worker", "shop:app", "--drain")

    assert (done.returncode, done.stdout) == (0, "")
    assert len(mark.read_text().splitlines()) == 50
    counts = "select state, count(*) from nursery_queue.task_status group by state order by state"
    assert rows(migrated, counts) == [("ready", 1), ("succeeded", 50)]


def test_drain_says_what_it_has_left_and_why(cli: Run, migrated: str) -> None:
    """Tasks of queues that are paused, full or hold only what it does not know: in one line."""
    new = "insert into nursery_queue.task (task_type, queue) values (%s, %s)"
    for name, queue in (
        *[("hello", "mail")] * 3,
        *[("hello", "shut")] * 2,
        ("hello", "done"),
        ("nobody", "other"),
        ("hello", "elsewhere"),
    ):
        rows(migrated, new, [name, queue])
    cli("queues", "pause", "mail", "elsewhere")
    cli("queues", "limit", "shut", "0")
    queues = [part for each in ("mail", "shut", "done", "other") for part in ("-q", each)]

    done = cli("worker", "shop:app", "--drain", *queues)

    assert done.returncode == 0
    (said,) = [line for line in done.stderr.splitlines() if " left " in line]
    assert "WARNING" in said
    assert said.endswith(
        "left 6 ready tasks: 3 of queue mail, which is paused; 1 of queue other, of task types"
        " that shop:app does not know, or new; 2 of queue shut, where at most 0 may run"
    )


def test_drain_says_how_many_tasks_it_leaves_for_later(cli: Run, migrated: str) -> None:
    """Those that wait for their time or their next attempt, in the queues it serves."""
    later = "insert into nursery_queue.task (task_type, queue, run_at) values (%s, %s, %s)"
    for queue in ("mail", "mail", "default", "elsewhere"):
        rows(migrated, later, ["hello", queue, "2100-01-01T00:00Z"])

    done = cli("worker", "shop:app", "--drain", "-q", "mail", "-q", "default")

    assert done.returncode == 0
    (said,) = [line for line in done.stderr.splitlines() if " left " in line]
    assert "INFO" in said
    assert said.endswith("left 3 scheduled tasks: 1 of queue default; 2 of queue mail")


def test_drain_that_leaves_nothing_says_nothing_of_it(cli: Run, migrated: str) -> None:
    """Nor does one that was stopped before it was idle."""
    enqueue(migrated, "hello")

    done = cli("worker", "shop:app", "--drain")

    assert (done.returncode, " left " in done.stderr) == (0, False)


def test_only_the_queues_that_were_named(cli: Run, migrated: str) -> None:
    """-q keeps the worker to its queues."""
    for queue in ("mail", "default", "other"):
        rows(
            migrated,
            "insert into nursery_queue.task (task_type, queue) values ('hello', %s)",
            [queue],
        )

    done = cli("worker", "shop:app", "--drain", "-q", "mail:2", "-q", "other")

    assert done.returncode == 0
    found = rows(migrated, "select queue, state from nursery_queue.task_status order by id")
    assert found == [("mail", "succeeded"), ("default", "ready"), ("other", "succeeded")]


def test_settings_reach_the_worker(start: Start, migrated: str) -> None:
    """Name, lease and queues are in the worker's row, from flags and from the environment."""
    env = {"NURSERY_QUEUE_LEASE": "12", "NURSERY_QUEUE_QUEUE": "mail:3,other"}
    with start("worker", "shop:app", "--name", "ada", env=env) as worker:
        worker.line("ready: ")
        (row,) = rows(migrated, "select name, lease, queues, pid from nursery_queue.worker")
        worker.send(TERM)
        code = worker.code()

    assert row == ("ada", 12.0, ["mail", "other"], worker.pid)
    assert code == 0


@pytest.mark.parametrize(
    ("args", "env"), [(["--max-lost", "7"], {}), ([], {"NURSERY_QUEUE_MAX_LOST": "7"})]
)
def test_max_lost_reaches_the_worker(
    start: Start, migrated: str, args: list[str], env: dict[str, str]
) -> None:
    """--max-lost is for all task types that say nothing of their own, and others can read it."""
    with start("worker", "shop:app", *args, env=env) as worker:
        worker.line("ready: ")
        ((allowed,),) = rows(migrated, "select max_lost from nursery_queue.worker")
        worker.send(TERM)
        assert worker.code() == 0

    assert set(allowed) > {"hello", "waits"}
    assert set(allowed.values()) == {7}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--lease", "5"], "at most a third of lease"),
        (["-q", "mail", "-q", "mail:2"], "named twice"),
        (["-q", "mail:x"], "NAME:N"),
        (["-c", "0"], "--concurrency"),
        (["--max-lost", "0"], "--max-lost"),
        (["--prefetch", "some"], "auto"),
        (["--processes", "0"], "--processes"),
        (["--log-format", "xml"], "--log-format"),
    ],
)
def test_settings_that_make_no_sense_are_2(cli: Run, args: list[str], said: str) -> None:
    """What the worker cannot be is a usage error."""
    done = cli("worker", "shop:app", *args)

    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# -- the log -------------------------------------------------------------------------------


def test_the_log_as_json(start: Start, project: Path, migrated: str) -> None:
    """Each line on stderr is an object: time, level, logger, message, and exc if there is one."""
    (project / "loud.py").write_text(
        "import logging, warnings\n"
        "from shop import app\n"
        "warnings.simplefilter('always')\n"
        "warnings.warn('old ways')\n"
        "try:\n"
        "    1 / 0\n"
        "except ZeroDivisionError:\n"
        "    logging.getLogger('theirs').exception('see postgresql://me:tOpsEcret@h/db')\n"
    )
    with start("worker", "loud:app", "--log-format", "json") as worker:
        worker.line("ready: ")
        worker.send(TERM)
        assert worker.code() == 0

    records = [json.loads(line) for line in worker.stderr.splitlines()]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    ours = [record for record in records if record["logger"].startswith("nursery_queue")]
    assert {record["level"] for record in ours} == {"INFO"}
    (theirs,) = [record for record in records if record["logger"] == "theirs"]
    assert theirs["message"] == "see postgresql://me:***@h/db"
    assert "ZeroDivisionError" in theirs["exc"]
    assert any(record["logger"] == "py.warnings" for record in records)


def test_an_application_that_silences_others_does_not_silence_us(
    cli: Run, project: Path, migrated: str
) -> None:
    """DictConfig switches existing loggers off by default; ours speak nevertheless."""
    (project / "bossy.py").write_text(
        "import logging.config\n"
        "from shop import app\n"
        "logging.config.dictConfig({'version': 1, 'handlers': {'h': {'class':"
        " 'logging.StreamHandler'}}, 'root': {'handlers': ['h'], 'level': 'INFO'}})\n"
    )

    done = cli("worker", "bossy:app", "--drain")

    assert done.returncode == 0
    assert done.stderr.count("working until idle") == 1


def test_v_says_more(cli: Run) -> None:
    """-v sets our loggers to DEBUG and changes nothing else."""
    done = cli("worker", "shop:app", "--drain", "-v")

    assert done.returncode == 0
    assert done.stderr.count("working until idle") == 1


def levels(stderr: str) -> set[str]:
    """Return the levels of the lines that our loggers wrote, as JSON."""
    return {json.loads(line)["level"] for line in stderr.splitlines()}


def test_events_as_json(cli: Run) -> None:
    """What happens to tasks is logged at level DEBUG, with an object that has all there is."""
    cli("enqueue", "hello")
    cli("enqueue", "fails")
    done = cli("worker", "shop:app", "--drain", "--log-level", "debug", "--log-format", "json")
    records = [json.loads(line) for line in done.stderr.splitlines()]
    events = [record["event"] for record in records if "event" in record]

    assert {event["kind"] for event in events} == {"task_started", "task_completed", "report"}
    assert {event["task_id"]: event["status"] for event in events if "status" in event} == {
        1: "succeeded",
        2: "failed",
    }
    assert events[-1]["failure_rate"] == 0.5
    assert (events[-1]["completed"], events[-1]["last"]) == (2, True)


def test_secrets_in_events(cli: Run, project: Path) -> None:
    """A password in an error is hidden in the object, too."""
    (project / "telling.py").write_text(
        "import nursery_queue as nq\n"
        "app = nq.App()\n"
        "@app.task(name='tells', retry=None)\n"
        "async def tells() -> None:\n"
        "    raise ValueError('postgresql://me:tOpsEcret@h/db')\n"
    )
    cli("enqueue", "tells")
    done = cli("worker", "telling:app", "--drain", "--log-level", "debug", "--log-format", "json")

    assert done.stderr.count("postgresql://me:***@h/db") == 3  # once in an object
    assert "tOpsEcret" not in done.stderr


def test_the_level_of_the_log(cli: Run) -> None:
    """The flag outdoes -v, which outdoes the variable; INFO is the default."""
    worker = ("worker", "shop:app", "--drain", "--log-format", "json")

    def said(*args: str, env: Mapping[str, str] | None = None) -> set[str]:
        cli("enqueue", "hello")
        return levels(cli(*worker, *args, env=env).stderr)

    warning = {"NURSERY_QUEUE_LOG_LEVEL": "Warning"}
    found = [said(), said(env=warning), said("-v", env=warning)]
    found.append(said("-v", "--log-level", "error", env=warning))

    assert found == [{"INFO"}, set(), {"INFO", "DEBUG"}, set()]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_bad_level_in_the_environment(cli: Run, processes: str) -> None:
    """It is warned of once, whatever number of processes hears of it, and the work goes on."""
    loud = {"NURSERY_QUEUE_LOG_LEVEL": "loud"}
    cli("enqueue", "hello")
    done = cli("worker", "shop:app", "--drain", "--processes", processes, env=loud)
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line.split()]

    assert done.returncode == 0
    assert len(warnings) == 1
    assert "NURSERY_QUEUE_LOG_LEVEL is 'loud'" in warnings[0]
    assert warnings[0].endswith("the default, INFO")
    assert "1 succeeded" in done.stderr


def test_a_bad_level_as_a_flag_is_2(cli: Run) -> None:
    """On the command line it is a usage error like any other."""
    done = cli("worker", "shop:app", "--log-level", "loud")

    assert done.returncode == 2
    assert "--log-level" in done.stderr


def test_an_app_without_task_types_is_warned_about(cli: Run, project: Path) -> None:
    """A worker that could never run anything says so."""
    (project / "bare.py").write_text("import nursery_queue\napp = nursery_queue.App()\n")

    done = cli("worker", "bare:app", "--drain")

    assert done.returncode == 0
    assert "has no task types" in done.stderr


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        ("pass", [True, gc.get_threshold()[0], True]),
        ("gc.set_threshold(900)", [True, 900, True]),
        ("gc.disable()", [False, gc.get_threshold()[0], False]),
    ],
)
def test_no_garbage_is_looked_for_among_what_was_there_at_the_start(
    cli: Run, project: Path, migrated: str, setting: str, seen: list[object]
) -> None:
    """How often a worker process looks for garbage, and whether, is left to its application.

    Cycles with large values are to be found as soon as in any program.
    """
    (project / "tidy.py").write_text(
        f"import gc\nimport nursery_queue as nq\napp = nq.App()\n{setting}\n"
        "@app.task\nasync def look() -> list[int]:\n"
        "    return [gc.isenabled(), gc.get_threshold()[0], gc.get_freeze_count() > 0]\n"
    )
    rows(migrated, "insert into nursery_queue.task (task_type) values ('tidy.look')")

    done = cli("worker", "tidy:app", "--drain")

    assert done.returncode == 0
    assert rows(migrated, "select result from nursery_queue.finished") == [(seen,)]
