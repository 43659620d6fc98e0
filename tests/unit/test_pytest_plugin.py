from __future__ import annotations

import os
import subprocess
import sys

from pathlib import Path

import psycopg
import pytest


HERE = Path(__file__).parents[2]
PLUGIN = "nursery_queue.testing._pytest_plugin"


@pytest.fixture(autouse=True)
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let other processes import the package from elsewhere, installed or not."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture
def on_our_server(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, nursery_queue_server: str
) -> pytest.Pytester:
    """Return a place for test files whose runs use the server of this run."""
    monkeypatch.setenv("NURSERY_QUEUE_TEST_DSN", nursery_queue_server)
    return pytester


def databases(server: str) -> set[str]:
    with psycopg.connect(server) as connection:
        rows = connection.execute("select datname::text from pg_database").fetchall()
    return {name for (name,) in rows}


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    installed = "no:nursery_queue"  # the entry point, if the package is installed
    return pytester.runpytest_subprocess("-W", "error", "-p", installed, "-p", PLUGIN, *options)


def test_an_empty_database_for_each_test(
    on_our_server: pytest.Pytester, nursery_queue_server: str
) -> None:
    """Each test has a database of its own, without our schema, and none is left behind."""
    on_our_server.makepyfile("""
        import psycopg, pytest

        @pytest.mark.parametrize("turn", [1, 2])
        def test_it(nursery_queue_database, turn):
            with psycopg.connect(nursery_queue_database) as connection:
                connection.execute("create table mine (x int)")
                row = connection.execute("select to_regnamespace('nursery_queue')").fetchone()
                assert row == (None,)
    """)
    before = databases(nursery_queue_server)

    run(on_our_server).assert_outcomes(passed=2)

    assert databases(nursery_queue_server) <= before


def test_a_database_with_the_schema(on_our_server: pytest.Pytester) -> None:
    """Each test finds the task table, and none sees the rows of another."""
    on_our_server.makepyfile("""
        import psycopg, pytest

        @pytest.mark.parametrize("turn", [1, 2])
        def test_it(nursery_queue_dsn, turn):
            with psycopg.connect(nursery_queue_dsn) as connection:
                row = connection.execute("select count(*) from nursery_queue.task").fetchone()
                assert row == (0,)
                connection.execute("insert into nursery_queue.task (task_type) values ('t')")
    """)

    run(on_our_server).assert_outcomes(passed=2)


def test_a_connection_left_open_does_not_keep_the_database(
    on_our_server: pytest.Pytester, nursery_queue_server: str
) -> None:
    """The database of a test is dropped even if somebody is still connected, and if it failed."""
    on_our_server.makepyfile("""
        import psycopg

        kept = []

        def test_it(nursery_queue_database):
            kept.append(psycopg.connect(nursery_queue_database))
            assert False

        def test_close():
            kept.pop().close()
    """)
    before = databases(nursery_queue_server)

    run(on_our_server).assert_outcomes(passed=1, failed=1)

    assert databases(nursery_queue_server) <= before


def test_the_embedded_server_is_thrown_away(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without NURSERY_QUEUE_TEST_DSN one embedded server serves the session and then is gone."""
    monkeypatch.delenv("NURSERY_QUEUE_TEST_DSN", raising=False)
    pytester.makepyfile("""
        import pathlib, psycopg

        def test_it(nursery_queue_server, nursery_queue_database):
            with psycopg.connect(nursery_queue_server) as connection:
                row = connection.execute("show data_directory").fetchone()
            pathlib.Path("where").write_text(row[0])
    """)

    run(pytester).assert_outcomes(passed=1)

    where = (pytester.path / "where").read_text()
    assert where
    assert not os.path.exists(os.path.dirname(where))  # noqa: PTH110, PTH120 - a string it is


def test_the_plugin_imports_nothing_when_it_is_loaded() -> None:
    """Since pytest loads it in everybody's runs, it adds nothing to the package's imports."""
    program = f"""
import sys, pytest, nursery_queue.testing
before = set(sys.modules)
import {PLUGIN}
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == f"['{PLUGIN}']"
