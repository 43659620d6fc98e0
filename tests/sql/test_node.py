"""A program in Node.js, with the driver that everybody uses, enqueues; a real worker runs it."""

from __future__ import annotations

import json
import shutil

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nursery_queue as nq

from tests.support.psql import Psql, program, url


HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "node_signup"
ANN = "ann@example.org"
USERS = "select email from usr order by id;"
STATES = "select state from nursery_queue.task_status order by id;"
Step = Callable[..., Any]


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, with its driver installed from the npm registry."""
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not on PATH: the Node.js client was not tested")
    folder = tmp_path_factory.mktemp("node")
    for each in (*EXAMPLE.iterdir(), HERE / "steps.mjs"):
        if each.is_file():
            shutil.copy(each, folder)
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=optional"]
    done = program(install, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(package: Path, psql: Psql) -> Callable[..., str]:
    """Run one of the package's programs to its end; it must have nothing to complain about."""

    def run(*arguments: str) -> str:
        done = program(["node", *arguments], cwd=package, env={"DATABASE_URL": url(psql.dsn)})
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    return run


@pytest.fixture
def step(run: Callable[..., str]) -> Step:
    """Carry out one of steps.mjs and return what came of it."""

    def step(name: str, *arguments: str) -> Any:
        return json.loads(run("steps.mjs", name, *arguments))

    return step


async def test_commit(step: Step, psql: Psql, worker: nq.Worker, sent: list[str]) -> None:
    """User and task are committed together, and a worker runs the task."""
    assert step("commit") == {"id": "1", "created": True}
    assert psql(USERS) == [ANN]
    assert step("status", "1")["state"] == "ready"

    await worker.run_until_idle()

    assert sent == [ANN]
    assert step("status", "1") == {
        "state": "succeeded",
        "attempt": 1,
        "result": f"welcomed {ANN}",
        "error_type": None,
        "error_message": None,
    }


async def test_the_example_as_a_program(
    run: Callable[..., str], psql: Psql, worker: nq.Worker, sent: list[str]
) -> None:
    """`node signup.mjs ADDRESS` signs up who is named, and says which task it has stored."""
    assert run("signup.mjs", "bob@example.org") == "task 1\n"
    assert psql(USERS) == ["bob@example.org"]

    await worker.run_until_idle()

    assert sent == ["bob@example.org"]


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("rollback", {"error": "changed my mind"}),
        ("hangUp", {"id": "1", "created": True}),
    ],
)
def test_rollback(
    name: str,
    outcome: object,
    step: Step,
    bell: Callable[[], int],
    nothing_stored: Callable[[], bool],
) -> None:
    """A program that throws, or goes away, leaves no user, no task, no notification, no id."""
    assert step(name) == outcome
    assert bell() == 0
    assert nothing_stored()
    assert step("status", "1") is None


def test_dedup(step: Step, psql: Psql) -> None:
    """The key of a live task gives its id, within the same transaction and in the next one."""
    assert step("dedup") == [{"id": "1", "created": True}, {"id": "1", "created": False}]
    assert psql(STATES) == ["ready"]
    assert psql(USERS) == [ANN]


def test_a_refused_task(step: Step, nothing_stored: Callable[[], bool]) -> None:
    """The database's error names the constraint, and nothing of that transaction is left."""
    answer = step("refused")

    assert (answer["code"], answer["constraint"]) == ("23514", "task_params_check")
    assert answer["usable"] == [{"one": 1}]
    assert nothing_stored()


def test_options(step: Step, psql: Psql) -> None:
    """Options go by name; a Date is an instant."""
    step("later")
    found = psql(
        "select state, priority, queue, round(extract(epoch from run_at - created_at) / 60)"
        " from nursery_queue.task_status;"
    )

    assert found == ["scheduled|7|mail|60"]


def test_a_name_that_is_none(step: Step, nothing_stored: Callable[[], bool]) -> None:
    """What cannot be the name of an option does not get into the statement."""
    assert step("wrongOption") == {"error": "not an option: x); --"}
    assert nothing_stored()


async def test_cancel(step: Step, worker: nq.Worker, sent: list[str]) -> None:
    """A waiting task is cancelled once; there is nothing to cancel the second time."""
    step("commit")

    assert step("cancel", "1") is True
    assert step("cancel", "1") is False
    assert step("status", "1")["state"] == "cancelled"

    await worker.run_until_idle()

    assert sent == []
