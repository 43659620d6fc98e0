from __future__ import annotations

import json
import re
import socket
import time
import uuid

from collections.abc import Generator
from pathlib import Path

import pytest

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from nursery_queue.cli import main
from tests.cli.runs import Run
from tests.support.command_line import rows
from tests.support.roles import Roles, made_roles


PASSWORD = "tOpsEcret"

ASKING = [
    ("status",),
    ("tasks", "list"),
    ("tasks", "show", "1"),
    ("tasks", "cancel", "1"),
    ("tasks", "retry", "1"),
    ("enqueue", "hello"),
    ("worker", "shop:app"),
    ("worker", "shop:app", "--drain"),
    ("worker", "shop:app", "--processes", "2"),
]
MIGRATING = [
    ("migrate", "up"),
    ("migrate", "down", "--yes"),
    ("migrate", "list"),
    ("migrate", "check"),
]


@pytest.fixture
def nobody_home() -> Generator[str]:
    """DSN of a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"postgresql://me:{PASSWORD}@127.0.0.1:{taken.getsockname()[1]}/shop"


@pytest.fixture
def guarded(migrated: str) -> Generator[str]:
    """DSN of a role that needs its password, over TCP."""
    role = f"guarded_{uuid.uuid4().hex}"
    told = conninfo_to_dict(migrated)
    rows(migrated, f"create role {role} superuser login password '{PASSWORD}'")
    try:
        yield make_conninfo(
            host="127.0.0.1", port=told["port"], dbname=told["dbname"], user=role, password=PASSWORD
        )
    finally:
        rows(migrated, f"drop role {role}")


@pytest.mark.parametrize("command", [*ASKING, *MIGRATING], ids=" ".join)
def test_a_server_that_is_not_there_is_69(
    cli: Run, nobody_home: str, command: tuple[str, ...]
) -> None:
    """A database that cannot be reached ends any command with 69, and is told with its place."""
    done = cli(*command, env={"NURSERY_QUEUE_DSN": nobody_home})

    assert done.returncode == 69
    assert done.stdout == ""
    assert "cannot reach database 'shop' on 127.0.0.1:" in done.stderr
    assert "as user 'me'" in done.stderr
    assert "named by NURSERY_QUEUE_DSN" in done.stderr
    assert done.stderr.count("Connection refused") == 1
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stderr


def test_with_v_there_is_a_traceback_and_still_no_password(cli: Run, nobody_home: str) -> None:
    """`-v` adds the traceback; the password is not in it either."""
    done = cli("status", "-v", "--dsn", nobody_home)

    assert done.returncode == 69
    assert "Traceback" in done.stderr
    assert PASSWORD not in done.stderr


def test_the_right_password_lets_in(quick: Run, guarded: str) -> None:
    """The role of the next test is let in with its password, so it is the password that counts."""
    assert quick("migrate", "check", "--dsn", guarded).returncode == 0


@pytest.mark.parametrize("command", [ASKING[0], ASKING[-3], MIGRATING[3]], ids=" ".join)
@pytest.mark.parametrize("password", ["wrong-one", None])
def test_a_wrong_password_is_2(
    cli: Run, guarded: str, command: tuple[str, ...], password: str | None
) -> None:
    """A wrong password, or none, is a matter of configuration, and is never repeated."""
    dsn = make_conninfo(guarded, password=password or "")

    done = cli(*command, "--dsn", dsn)

    assert done.returncode == 2
    assert "password" in done.stderr
    assert "PGPASSWORD" in done.stderr
    assert "127.0.0.1" in done.stderr
    assert "wrong-one" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [({"dbname": "no_such_one"}, "does not exist"), ({"user": "no_such_one"}, "no_such_one")],
)
def test_a_wrong_name_is_2(quick: Run, migrated: str, change: dict[str, str], said: str) -> None:
    """A database or a role that does not exist is a matter of configuration."""
    done = quick("status", "--dsn", make_conninfo(migrated, **change))

    assert done.returncode == 2
    assert said in done.stderr
    assert "Hint: " in done.stderr


@pytest.mark.parametrize(
    "dsn", ["postgresql://127.0.0.1:1/db?sslmode=odd", "host=127.0.0.1 port=x"]
)
def test_a_dsn_that_libpq_refuses_is_2(
    clean: Path, capsys: pytest.CaptureFixture[str], dsn: str
) -> None:
    """A DSN that no server could cure is a matter of configuration."""
    assert main(["status", "--dsn", dsn]) == 2
    assert "Error: " in capsys.readouterr().err


def test_database_url_may_name_a_driver(quick: Run, migrated: str) -> None:
    """SQLAlchemy's way of writing the scheme works in DATABASE_URL."""
    url = migrated_url(migrated).replace("postgresql://", "postgresql+psycopg://")

    done = quick("migrate", "check", env={"NURSERY_QUEUE_DSN": "", "DATABASE_URL": url})

    assert done.returncode == 0, done.stderr


def test_libpq_variables_are_enough(quick: Run, migrated: str) -> None:
    """PGHOST and its like name the database where nothing else does."""
    told = conninfo_to_dict(migrated)
    env = {"NURSERY_QUEUE_DSN": ""}
    for key in ("host", "port", "user", "password", "dbname"):
        if key in told:
            env["PGDATABASE" if key == "dbname" else f"PG{key.upper()}"] = str(told[key])

    assert quick("migrate", "check", env=env).returncode == 0


def migrated_url(dsn: str) -> str:
    told = conninfo_to_dict(dsn)
    host, password = str(told["host"]), told.get("password")
    secret = f":{password}" if password else ""
    query = f"host={host}&port={told['port']}"
    return f"postgresql://{told['user']}{secret}@/{told['dbname']}?{query}"


# -- rights --------------------------------------------------------------------------------


@pytest.fixture
def roles(dsn: str) -> Generator[Roles]:
    with made_roles(dsn, "nursery_queue") as made:
        yield made


def test_rights_that_are_missing_are_2_and_the_hint_names_the_roles(
    quick: Run, roles: Roles
) -> None:
    """A role that may not do this is told who refused it, and where roles that may come from."""
    producer, reader = roles.login["producer"], roles.login["reader"]
    for command, dsn in [
        (("status",), producer),
        (("tasks", "list"), producer),
        (("queues", "pause", "mail"), reader),
        (("enqueue", "hello"), reader),
    ]:
        done = quick(*command, "--dsn", dsn)

        assert done.returncode == 2, command
        assert f"as user '{conninfo_to_dict(dsn)['user']}'" in done.stderr
        assert "permission denied" in done.stderr
        assert "nursery-queue migrate sql --roles" in done.stderr


@pytest.mark.parametrize("drain", [False, True])
def test_a_worker_without_rights_speaks_of_no_lease(cli: Run, roles: Roles, drain: bool) -> None:
    """A worker that cannot register is told so as any command; it has nothing to leave behind."""
    options = ["--drain"] if drain else []
    done = cli("worker", "shop:app", *options, "--dsn", roles.login["reader"])

    assert done.returncode == 2
    assert "nursery-queue migrate sql --roles" in done.stderr
    assert "deregister" not in done.stderr
    assert done.stderr.count("permission denied") == 1


def test_a_producer_cancels_what_it_may_not_see(quick: Run, roles: Roles) -> None:
    """Its cancel is a success, with the id alone; of one that has ended it may not know."""
    producer = roles.login["producer"]
    (task_id,) = quick("enqueue", "hello", "--dsn", producer).stdout.split()

    first = quick("tasks", "cancel", task_id, "--dsn", producer)
    again = quick("tasks", "cancel", task_id, "--json", "--dsn", producer)

    assert (first.returncode, first.stdout, first.stderr) == (0, f"{task_id}\n", "")
    assert again.returncode == 1
    assert json.loads(again.stdout) == {"id": int(task_id), "done": False, "state": None}
    assert f"task {task_id} has ended already, never existed, or has been pruned" in again.stderr


def test_a_server_that_is_full_is_not_said_to_be_away(quick: Run, dsn: str) -> None:
    """No room for another connection is told as that, with what makes room."""
    with made_roles(dsn, "nursery_queue") as made:
        owner = made.login["owner"]
        rows(dsn, f"alter role {conninfo_to_dict(owner)['user']} connection limit 0")

        done = quick("migrate", "check", "--dsn", owner)

    assert done.returncode == 69
    assert "too many connections" in done.stderr
    assert "max_connections" in done.stderr
    assert "is it running" not in done.stderr


@pytest.mark.parametrize("command", [("status",), ("enqueue", "hello")], ids=" ".join)
def test_a_command_says_soon_that_the_server_is_full(
    cli: Run, dsn: str, command: tuple[str, ...]
) -> None:
    """It says what it waits for while it waits, and gives up long before the pool would."""
    with made_roles(dsn, "nursery_queue") as made:
        owner = made.login["owner"]
        rows(dsn, f"alter role {conninfo_to_dict(owner)['user']} connection limit 0")

        began = time.monotonic()
        done = cli(*command, "--dsn", owner)
        took = time.monotonic() - began

    assert done.returncode == 69
    first, *rest = done.stderr.splitlines()
    assert re.match("waiting for a connection: .*too many connections", first)
    assert rest[0].startswith("Error: cannot reach database")
    assert "too many connections" in "".join(rest)
    assert "max_connections" in done.stderr
    assert took < 20  # 10, and the start of a process


# -- the schema ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", [*ASKING, MIGRATING[3]], ids=" ".join)
def test_a_missing_schema_is_2(cli: Run, dsn: str, command: tuple[str, ...]) -> None:
    """Without the tables every command but `migrate` says how to get them, once."""
    done = cli(*command, "--dsn", dsn)

    assert done.returncode == 2
    assert done.stderr.count("run `nursery-queue migrate up`") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [ASKING[0], ASKING[-3], MIGRATING[3]], ids=" ".join)
def test_an_older_schema_is_2(cli: Run, migrated: str, command: tuple[str, ...]) -> None:
    """Tables that lack a migration are refused, with what to run."""
    newest = "(select max(version) from nursery_queue.migration)"
    rows(migrated, f"delete from nursery_queue.migration where version = {newest}")

    done = cli(*command)

    assert done.returncode == 2
    assert "older" in done.stderr
    assert "nursery-queue migrate up" in done.stderr


@pytest.mark.parametrize("command", [ASKING[0], ASKING[-3], *MIGRATING[::3]], ids=" ".join)
def test_a_newer_schema_is_2(cli: Run, migrated: str, command: tuple[str, ...]) -> None:
    """Tables of a newer release are refused, also by `migrate up`."""
    rows(migrated, "insert into nursery_queue.migration values (9999, 'later', 'x')")

    done = cli(*command)

    assert done.returncode == 2
    assert "newer" in done.stderr


def test_usage_errors_are_2(quick: Run) -> None:
    """An option that does not exist is a usage error, without a traceback."""
    done = quick("status", "--nothing-like-it")

    assert done.returncode == 2
    assert "--nothing-like-it" in done.stderr
    assert "Usage: nursery-queue status" in done.stderr


@pytest.mark.parametrize("pipe", ["1", "1:2", "1:2:3:4", "one:2:3"])
def test_a_child_is_given_three_numbers(quick: Run, pipe: str) -> None:
    """What a parent does not write after --child is a usage error, and no error of ours."""
    done = quick("worker", "shop:app", "--child", pipe)

    assert done.returncode == 2
    assert "Invalid value for '--child'" in done.stderr
