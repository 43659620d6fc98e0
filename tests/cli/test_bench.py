"""`bench`: it shows what the database confirms, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from psycopg.conninfo import make_conninfo

from nursery_queue._connect import _scratch
from nursery_queue._connect._scratch import scratch
from nursery_queue._core._errors import NurseryQueueError
from nursery_queue._pg import _migrator
from nursery_queue._psycopg._connection import Connection
from nursery_queue.cli._measuring import _children, _round, _scenarios
from nursery_queue.cli._measuring._children import BenchFailed, child_of
from nursery_queue.cli._measuring._figures import Measured, Row
from nursery_queue.cli._measuring._round import Plan
from nursery_queue.cli._measuring._scenarios import measure
from nursery_queue.cli._measuring._server_cpu import ServerCpu
from tests.cli.printed import lines, objects
from tests.cli.runs import Run, Start
from tests.cli.terminals import in_terminal
from tests.support.command_line import Running, is_alive, rows, until


FEW = ("--tasks", "20", "--rounds", "1")
ENDLESS = ("trickle", "--tasks", "1000000", "--rounds", "1")
ROWS = {
    "drain": ["drain"],
    "latency": ["latency"],
    "enqueue": ["enqueue one", "enqueue many", "enqueue copy"],
    "transactional": ["transactional"],
    "streams": ["streams write", "streams read"],
    "trickle": ["trickle"],
}
FIGURES = [
    *("what", "tasks", "rounds", "rate", "rate_min", "rate_max"),
    *("worker_cpu_us", "server_cpu_us"),
]
LATENCIES = ["p50_ms", "p99_ms", "max_ms"]


@attrs.frozen
class Role:
    """Who runs `bench`, so that what is left behind can be told from what others have."""

    name: str
    admin: str
    dsn: str

    @property
    def env(self) -> dict[str, str]:
        return {"NURSERY_QUEUE_DSN": self.dsn}

    def databases(self) -> list[str]:
        return self._owned("select datname from pg_database where datdba = %s::regrole")

    def schemas(self) -> list[str]:
        return self._owned("select nspname from pg_namespace where nspowner = %s::regrole")

    def _owned(self, query: str) -> list[str]:
        return [name for (name,) in rows(self.admin, query, [self.name])]


def drop(role: Role) -> None:
    """Drop its databases."""
    for database in role.databases():
        rows(role.admin, f"drop database {database} with (force)")


def made_role(admin: str, options: str) -> Generator[Role]:
    name = f"bencher_{uuid.uuid4().hex}"
    rows(admin, f"create role {name} login {options}")
    role = Role(name, admin, make_conninfo(admin, user=name))
    try:
        yield role
        assert (role.databases(), role.schemas()) == ([], [])
    finally:
        drop(role)
        rows(admin, f"drop owned by {name} cascade")
        rows(admin, f"drop role {name}")


@pytest.fixture
def role(migrated: str) -> Generator[Role]:
    """May create databases; nothing of it may be left when the test ends."""
    yield from made_role(migrated, "createdb")


@pytest.fixture
def guest(migrated: str) -> Generator[Role]:
    """May create no database; nothing of it may be left when the test ends."""
    yield from made_role(migrated, "nocreatedb")


# -- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ROWS)
def test_figures_as_json(cli: Run, role: Role, what: str) -> None:
    """Each thing that is measured is a line, with figures that make sense."""
    done = cli("bench", what, *FEW, "--json", env=role.env)

    assert (done.returncode, done.stderr) == (0, "")
    found = objects(done.stdout)
    assert [row["what"] for row in found] == ROWS[what]
    for row in found:
        assert list(row) == FIGURES + (LATENCIES if what == "latency" else [])
        assert row["tasks"] == (2 if row["what"] == "enqueue one" else 20)
        assert row["rounds"] == 1
        assert row["rate"] == row["rate_min"] == row["rate_max"] > 0
        assert row["worker_cpu_us"] > 0
        assert row["server_cpu_us"] is None or row["server_cpu_us"] >= 0
        if what == "latency":
            assert row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]


def test_figures_for_a_program(cli: Run, role: Role) -> None:
    """Without a terminal: tab-separated, and nothing of a bar."""
    done = cli("bench", "enqueue", "--tasks", "30", "--rounds", "2", env=role.env)

    assert (done.returncode, done.stderr) == (0, "")
    expected = [["enqueue one", "3", "2"], ["enqueue many", "30", "2"], ["enqueue copy", "30", "2"]]
    assert [line[:3] for line in lines(done.stdout)] == expected


def test_figures_for_a_person(project: Path, role: Role) -> None:
    """On a terminal there is a bar, and a table at the end."""
    code, shown = in_terminal("bench", "drain", *FEW, cwd=project, dsn=role.dsn, NO_COLOR="1")

    assert code == 0
    assert "drain, round 1 of 1" in shown
    assert "20/20" in shown
    heading, row = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown).rstrip().splitlines()[-2:]
    assert heading.split("  ")[0] == "what"
    assert heading.endswith("server us")
    assert row.split()[:2] == ["drain", "20"]
    assert len(row.split()) in {6, 7}  # so few tasks may take too little of the server to count


def test_several_processes(cli: Run, role: Role) -> None:
    """Workers share the tasks, though some may get none of so few."""
    done = cli("bench", "drain", *FEW, "--processes", "2", "--json", env=role.env)

    assert (done.returncode, done.stderr) == (0, "")
    assert [row["tasks"] for row in objects(done.stdout)] == [20]


def measured(seconds: float, server_cpu: float | None, *waits: float) -> Measured:
    return Measured(
        what="x", tasks=10, seconds=seconds, worker_cpu=seconds, server_cpu=server_cpu, waits=waits
    )


def test_rounds_are_put_together() -> None:
    """Medians, and the extremes of the rate; latencies of all rounds together."""
    row = Row.of([measured(1, 2, 5, 1), measured(2, 4, 3), measured(10, 9, 2, 4)])

    assert (row.rate, row.rate_min, row.rate_max) == (5, 1, 10)
    assert (row.worker_cpu_us, row.server_cpu_us) == (200_000, 400_000)
    assert (row.p50_ms, row.p99_ms, row.max_ms) == (3, 5, 5)


def test_what_is_not_known_is_null() -> None:
    """A server elsewhere has no CPU time, and a latency that is not measured is left out."""
    row = Row.of([measured(1, None)]).as_json()

    assert list(row) == FIGURES
    assert row["server_cpu_us"] is None


def test_what_cannot_be_counted_is_null() -> None:
    """A server that has used less than a tick of its clock has not worked for nothing."""
    assert Row.of([measured(1, 0.0)]).server_cpu_us is None


async def progress_of(what: str, role: Role, plan: Plan) -> list[tuple[str, int, int]]:
    told: list[tuple[str, int, int]] = []

    def tell(part: str, done: int, total: int) -> None:
        told.append((part, done, total))

    await measure(what, role.dsn, plan, 1, tell)
    return told


async def test_a_backlog_comes_in_portions(role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    """While tasks are enqueued there is a bar, and a moment to hear a signal in."""
    monkeypatch.setattr(_scenarios, "PORTION", 8)
    told = await progress_of("drain", role, Plan(tasks=20))

    assert told[:3] == [("drain: enqueuing, round 1 of 1", done, 20) for done in (0, 8, 16)]
    assert told[-1] == ("drain, round 1 of 1", 20, 20)


async def test_the_bar_counts_what_counts(role: Role) -> None:
    """Those that warm up are in no bar."""
    told = await progress_of("latency", role, Plan(tasks=20, gap=0.001))

    assert {total for _, _, total in told} == {20}
    assert told[-1] == ("latency, round 1 of 1", 20, 20)


def test_another_program_is_no_server() -> None:
    """The number of a process on another machine may be that of any process here."""
    assert ServerCpu.of_backend(os.getpid(), "postgres") is None
    assert ServerCpu.of_backend(2**22 + 1, "postgres") is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
async def test_the_server_of_a_backend(db: Connection) -> None:
    """It is found, and never has used less than before, though sessions end meanwhile."""
    server = ServerCpu.of_backend(db.info.backend_pid, db.info.dbname)
    assert server is not None
    before = server.seconds()
    async with await Connection.connect(db.info.dsn) as other:
        assert ServerCpu.of_backend(other.info.backend_pid, db.info.dbname) == server
        await other.fetch("select count(md5(i::text)) from generate_series(1, 100000) as i")
        with_session = server.seconds()

    assert before < with_session
    assert server.seconds() >= with_session


# -- nothing is left -----------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()  # a child belongs to the thread that made it
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def at_work(running: Running, role: Role, there: Callable[[], Any]) -> list[int]:
    """Wait until there is a place, and tasks go through it; return the processes."""
    until(there, "a place of its own")
    at = make_conninfo(role.admin, dbname=role.databases()[0]) if role.databases() else role.admin
    schema = "nursery_queue" if role.databases() else role.schemas()[0]
    made = "select to_regclass(%s) is not null"
    until(lambda: rows(at, made, [f"{schema}.attempt"]) == [(True,)], "tables")
    until(lambda: rows(at, f"select 1 from {schema}.attempt offset 20 limit 1"), "tasks")
    return children(running.pid)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(start: Start, role: Role, signum: signal.Signals) -> None:
    """One line, exit code 130; database and processes are gone."""
    with start("bench", *ENDLESS, env=role.env) as running:
        processes = at_work(running, role, role.databases)
        running.send(signum)
        code = running.code()

    assert (code, running.stderr, running.lines("stdout")) == (130, "interrupted", [])
    assert len(processes) == 2
    assert not any(map(is_alive, processes))
    assert role.databases() == []


def test_a_signal_while_a_handler_runs(start: Start, role: Role) -> None:
    """What the worker says of a handler that it has to release is nobody's business."""
    with start("bench", "streams", "--tasks", "1000000", env=role.env) as running:
        (database,) = until(role.databases, "a database")
        at = make_conninfo(role.admin, dbname=database)
        written = "select to_regclass('nursery_queue.chunk') is not null"
        until(lambda: rows(at, written) == [(True,)], "tables")
        until(lambda: rows(at, "select 1 from nursery_queue.chunk limit 1"), "chunks")
        running.send(signal.SIGINT)
        code = running.code()

    assert (code, running.stderr) == (130, "interrupted")


def test_a_signal_at_the_very_beginning(start: Start, role: Role) -> None:
    """The database is gone also if it was not ready yet."""
    with start("bench", *ENDLESS, env=role.env) as running:
        until(role.databases, "a database")
        running.send(signal.SIGINT)
        code = running.code()

    assert (code, running.stderr) == (130, "interrupted")
    assert role.databases() == []


def test_a_second_signal_does_not_wait(start: Start, role: Role) -> None:
    """If its end takes too long, a second signal ends it at once, and it names what may be left."""
    with start("bench", *ENDLESS, env=role.env) as running:
        processes = at_work(running, role, role.databases)
        (database,) = role.databases()
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        try:
            while running.process.poll() is None:
                running.send(signal.SIGINT)
                time.sleep(0.1)
        finally:
            for pid in processes:
                os.kill(pid, signal.SIGKILL)
        code = running.code()

    assert code == 1
    assert f"a database or schema called {database}: drop it" in running.stderr
    drop(role)


def test_a_process_that_dies(start: Start, role: Role) -> None:
    """There are no figures, and nothing is left."""
    with start("bench", *ENDLESS, env=role.env) as running:
        processes = at_work(running, role, role.databases)
        os.kill(processes[0], signal.SIGKILL)
        code = running.code()

    assert code == 1
    assert "has ended, and does not say why" in running.stderr
    assert running.lines("stdout") == []
    assert not any(map(is_alive, processes))
    assert role.databases() == []


def test_processes_end_with_their_parent(start: Start, role: Role) -> None:
    """Nothing goes on when the command is killed, though its database is left."""
    with start("bench", *ENDLESS, env=role.env) as running:
        processes = at_work(running, role, role.databases)
        secrets = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes]
        running.send(signal.SIGKILL)
        running.code()
        until(lambda: not any(map(is_alive, processes)), "their end")

    assert not any("user=" in each or "postgres" in each for each in secrets)
    drop(role)


# -- a role that may not create databases --------------------------------------------------------


@pytest.mark.parametrize("what", ["transactional", "streams"])
def test_a_schema_will_do(cli: Run, guest: Role, what: str) -> None:
    """A role that may only create schemas gets one, beside other tables, which stay as they are."""
    rows(guest.admin, f"grant create on database {database_of(guest)} to {guest.name}")
    rows(guest.admin, "insert into nursery_queue.task (task_type) values ('nothing')")
    done = cli("bench", what, *FEW, "--json", env=guest.env)

    assert (done.returncode, done.stderr) == (0, "")
    assert [row["what"] for row in objects(done.stdout)] == ROWS[what]
    assert guest.schemas() == []
    assert rows(guest.admin, "select count(*) from nursery_queue.ready") == [(1,)]


def test_a_signal_removes_the_schema(start: Start, guest: Role) -> None:
    """As it removes a database."""
    rows(guest.admin, f"grant create on database {database_of(guest)} to {guest.name}")
    with start("bench", *ENDLESS, env=guest.env) as running:
        at_work(running, guest, guest.schemas)
        running.send(signal.SIGINT)
        code = running.code()

    assert (code, running.stderr) == (130, "interrupted")
    assert guest.schemas() == []


def test_a_role_that_may_do_nothing(quick: Run, guest: Role) -> None:
    """It is told so, and what to grant; not in which of our statements."""
    done = quick("bench", "drain", *FEW, env=guest.env)

    assert (done.returncode, done.stdout) == (2, "")
    assert "permission denied for database" in done.stderr
    assert "grant create on database" in done.stderr
    assert "--roles" not in done.stderr
    assert "CONTEXT" not in done.stderr


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases that are made for a run cannot be entered, as through a pooler."""
    do = _scratch._do  # pyright: ignore[reportPrivateUsage]  # what follows one of its steps

    async def close_at_once(session: Connection, statement: str) -> None:
        await do(session, statement)
        if statement.startswith("create database"):
            await do(session, f"alter database {statement.split()[2]} allow_connections false")

    monkeypatch.setattr(_scratch, "_do", close_at_once)


@pytest.mark.usefixtures("closed")
def test_a_database_that_is_closed(
    quick: Run, role: Role, caplog: pytest.LogCaptureFixture
) -> None:
    """A role that cannot enter the database that it has made gets a schema, and one warning."""
    rows(role.admin, f"grant create on database {database_of(role)} to {role.name}")
    done = quick("bench", "drain", "--tasks", "20", "--rounds", "2", "--json", env=role.env)

    assert done.returncode == 0
    assert [row["tasks"] for row in objects(done.stdout)] == [20]
    assert (role.databases(), role.schemas()) == ([], [])
    said = [record.getMessage() for record in caplog.records]
    assert len([each for each in said if "was created, and dropped again" in each]) == 1
    assert "not currently accepting connections" in said[0]


@pytest.mark.usefixtures("closed")
def test_neither_a_database_nor_a_schema(quick: Run, role: Role) -> None:
    """Where there can be a schema neither, it is told, and nothing is left."""
    done = quick("bench", "drain", *FEW, env=role.env)

    assert (done.returncode, done.stdout) == (2, "")
    assert "permission denied for database" in done.stderr
    assert (role.databases(), role.schemas()) == ([], [])


def database_of(role: Role) -> str:
    ((name,),) = rows(role.admin, "select current_database()")
    return str(name)


# -- no figures without proof --------------------------------------------------------------------

FAULTS = {
    "a log without some rows": (
        "before insert on nursery_queue.attempt for each row when (new.task_id % 5 = 0)",
        "return null",
    ),
    "a log with rows twice": (
        "after insert on nursery_queue.attempt for each row when (new.epoch < 1000)",
        "new.epoch := new.epoch + 1000; insert into nursery_queue.attempt select new.*; return new",
    ),
    "tasks that vanish": (
        "after insert on nursery_queue.attempt for each row when (new.task_id % 5 = 0)",
        "delete from nursery_queue.task where id = new.task_id; return new",
    ),
}
SPOIL = """
    create function spoil() returns trigger language plpgsql as $$ begin {1}; end $$;
    create trigger spoil {0} execute function spoil()
"""


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Gives the tables of every round a trigger."""
    up = _migrator.up

    def spoil(when: str, body: str) -> None:
        async def spoiled(session: Connection, schema: str) -> Any:
            done = await up(session, schema)
            await session.execute(SPOIL.format(when, body).encode())
            return done

        monkeypatch.setattr(_migrator, "up", spoiled)

    return spoil


@pytest.mark.parametrize("fault", FAULTS)
def test_a_false_log_is_refused(
    quick: Run, role: Role, spoil: Callable[[str, str], None], fault: str
) -> None:
    """Unless each task has one row in the log there are no figures; nothing is left."""
    spoil(*FAULTS[fault])
    done = quick("bench", "drain", *FEW, "--json", env=role.env)

    assert (done.returncode, done.stdout) == (1, "")
    assert "There are no figures" in done.stderr
    assert role.databases() == []


# For `spoil`: tasks are stored, and no worker will find them.
NEVER_READY = (
    "after insert on nursery_queue.ready for each row",
    "delete from nursery_queue.ready where task_id = new.task_id; return new",
)


def test_enqueued_tasks_that_are_not_there(
    quick: Run, role: Role, spoil: Callable[[str, str], None]
) -> None:
    """What was enqueued must be stored, and ready."""
    spoil(*NEVER_READY)
    done = quick("bench", "enqueue", *FEW, "--json", env=role.env)

    assert (done.returncode, done.stdout) == (1, "")
    assert "of 2 tasks, the database has 2, and 0 are ready" in done.stderr


def test_tasks_that_never_start(
    quick: Run, role: Role, spoil: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for ever."""
    monkeypatch.setattr(_round, "STALL", 2.0)
    spoil(*NEVER_READY)
    done = quick("bench", "drain", *FEW, "--json", env=role.env)

    assert (done.returncode, done.stdout) == (1, "")
    assert "0 of 20 tasks have started, and none for 2 s" in done.stderr


def test_a_worker_that_cannot_begin(
    quick: Run,
    role: Role,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What keeps it from its tasks is the last line, and was a line of the log, once."""
    monkeypatch.setattr(_round, "STALL", 2.0)
    rows(role.admin, f"alter role {role.name} connection limit 3")
    done = quick("bench", "drain", *FEW, "--json", env=role.env)

    assert (done.returncode, done.stdout) == (1, "")
    assert "0 of 20 tasks have started" in done.stderr
    assert re.search("the last that a worker has to say: .*too many connections", done.stderr)
    said = [record.getMessage() for record in caplog.records]
    assert any("too many connections" in text for text in said)
    assert len(set(said)) == len(said)


async def test_a_process_that_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not get ready is given up, and ended: it may wait for a connection."""
    monkeypatch.setattr(_children, "START", 0.5)
    with pytest.raises(BenchFailed, match="that is to enqueue slowly is not ready after"):
        async with child_of([sys.executable, "-c", "input(); input()"], "enqueue_slowly"):
            pass


def test_an_error_in_a_process_is_told(
    quick: Run, role: Role, spoil: Callable[[str, str], None]
) -> None:
    """What the database says to it is not lost."""
    spoil("before insert on nursery_queue.task for each row", "raise 'no tasks today'")
    done = quick("bench", "latency", *FEW, env=role.env)

    assert (done.returncode, done.stdout) == (1, "")
    assert "the process that is to enqueue slowly failed" in done.stderr
    assert "no tasks today" in done.stderr


async def test_what_cannot_be_removed_is_named(role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the statement that removes it."""

    async def fail(_session: Connection, _statement: str) -> None:
        raise trio.TooSlowError

    with pytest.raises(NurseryQueueError, match="remove it by hand") as caught:
        async with scratch(role.dsn):
            monkeypatch.setattr(_scratch, "_do", fail)

    (database,) = role.databases()
    assert f"drop database if exists {database}; " in str(caught.value)
    rows(role.admin, f"drop database {database}")


# -- the command itself --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("drain", "--tasks", "0"),
        ("drain", "--processes", "0"),
        ("latency", "--gap", "soon"),
        ("enqueue", "--rounds", "none"),
        ("drain", "--dsn", "postgresql://a@b@c/d"),
    ],
)
def test_what_makes_no_sense_is_2(quick: Run, args: tuple[str, ...]) -> None:
    """A usage error, before anything is made."""
    assert quick("bench", *args).returncode == 2


def test_a_server_that_is_not_there(quick: Run) -> None:
    """It is told with its place, as by any command."""
    done = quick("bench", "drain", "--dsn", "postgresql://u:secret@127.0.0.1:1/x")

    assert done.returncode == 69
    assert "127.0.0.1:1" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("setting", "code", "why", "hint"),
    [
        ("default_transaction_read_only=on", 2, "read-only transaction", "leads to the primary"),
        ("statement_timeout=1", 69, "statement timeout", "statement_timeout is too short"),
    ],
)
def test_a_server_that_answers_is_there(
    quick: Run, role: Role, setting: str, code: int, why: str, hint: str
) -> None:
    """What it refuses is told as that, and not as a server that cannot be reached."""
    done = quick("bench", "drain", *FEW, env=role.env | {"PGOPTIONS": f"-c {setting}"})

    assert (done.returncode, done.stdout) == (code, "")
    assert "refused by database" in done.stderr
    assert why in done.stderr
    assert hint in done.stderr


def test_other_commands_do_not_load_it() -> None:
    """They start without what measures."""
    program = "import sys, nursery_queue.cli._run as run; code = run.run(['bench', '--help']);"
    program += "sys.exit(code or any('._measuring.' in name for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (0, b"")
