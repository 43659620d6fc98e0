"""What is imported, and when: in child processes, since this one has imported everything."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import nursery_queue as nq

from nursery_queue.cli._commands import SENTENCES, commands


PACKAGE = Path(nq.__file__).parent
# What takes long, or has effects of its own: a program that does not use it does without.
HEAVY = {
    *("trio", "psycopg", "psycopg_pool", "cattrs", "asyncio", "ssl", "concurrent.futures"),
    *("importlib.metadata", "http", "xml", "sqlalchemy", "django", "rich"),
}
FLOOR = {
    "nursery_queue",
    "nursery_queue._core",
    "nursery_queue._core._checks",
    "nursery_queue._core._errors",
    "nursery_queue._core._log_level",
    "nursery_queue._first_use",
    "nursery_queue._quiet_start",
}
DECLARE = """
import nursery_queue as nq
app = nq.App()
@app.task(name="greet", timeout=5, retry=nq.RetryPolicy(max_attempts=3))
async def greet(name: str) -> str:
    return name
"""
SEE = "import json, sys; print(json.dumps(sorted(sys.modules)))"
HELP = """
import contextlib, io
from nursery_queue.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    main(["--help"])
"""


def imported(program: str) -> set[str]:
    """Return the modules that there are when *program* has run."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{SEE}"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


def of(room: str, modules: set[str]) -> set[str]:
    return {each for each in modules if each.startswith(f"nursery_queue.{room}")}


def imports_for_type_checkers(package: Path) -> Iterator[tuple[str, str]]:
    """Yield module and name of each `from module import name as name` that is public."""
    for node in ast.walk(ast.parse((package / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            for each in node.names:
                if each.asname is not None and not each.asname.startswith("_"):
                    yield "." * node.level + (node.module or ""), each.asname


def imports_on_first_use(package: Path) -> Iterator[tuple[str, str]]:
    """Yield the same of the table of names that are imported when they are used."""
    for node in ast.walk(ast.parse((package / "__init__.py").read_text())):
        if isinstance(node, ast.Dict):
            for room, names in ast.literal_eval(node).items():
                for name in names.split():
                    yield room, name


# -- what is imported -------------------------------------------------------------------------


def test_the_package_alone() -> None:
    """Importing the package brings the errors and the level of the log, and nothing heavy."""
    modules = imported("import nursery_queue")

    assert of("", modules) | {"nursery_queue"} == FLOOR
    assert modules & HEAVY == set()


def test_help() -> None:
    """`nursery-queue --help` imports no command, and nothing of what commands need."""
    modules = imported(HELP)

    assert {each for each in of("", modules) if ".cli" not in each} == {
        *(FLOOR - {"nursery_queue"}),
        *("nursery_queue._core._exception_groups", "nursery_queue._core._secrets"),
    }
    assert len(of("cli", modules)) == 5
    assert modules & HEAVY == set()


def test_testing_alone() -> None:
    """So does what pytest imports in every run, whether its fixtures are used or not."""
    modules = imported("import nursery_queue.testing")

    assert of("", modules) - of("testing", modules) | {"nursery_queue"} == FLOOR
    assert modules & HEAVY == set()


def test_declaring() -> None:
    """Declaring tasks takes neither trio nor a database, nor the client."""
    modules = imported(DECLARE)

    assert modules & HEAVY == {"cattrs"}
    assert len(of("", modules)) < 40


@pytest.mark.parametrize("name", ["connect", "producer", "TaskContext"])
def test_enqueuing(name: str) -> None:
    """Who enqueues gets no worker, and not what is for other libraries than psycopg."""
    modules = imported(f"{DECLARE}\nnq.{name}")

    assert of("_worker", modules) | of("_embedded", modules) | of("_memory", modules) == set()
    assert modules & {"psycopg_pool", "sqlalchemy", "django", "rich", "click"} == set()


@pytest.mark.parametrize(
    "making",
    [
        "nq.Worker(app, nq.Client(MemoryStore()))",
        "import trio; trio.run(nursery_queue.testing.perform, greet.bind('Ann'))",
    ],
)
def test_handlers_wait_for_no_import(making: str) -> None:
    """When a worker is made, or a handler performed, all that is public has been imported."""
    tools = "import nursery_queue.testing; from nursery_queue.testing import MemoryStore"
    check = "assert set(nq.__all__) <= set(vars(nq)), set(nq.__all__) - set(vars(nq))"

    modules = imported(f"{DECLARE}\n{tools}\n{making}\n{check}")

    assert of("_producers", modules)


# -- that nobody notices ----------------------------------------------------------------------


@pytest.mark.parametrize("package", [PACKAGE, PACKAGE / "testing"], ids=lambda each: each.name)
def test_type_checkers_and_python_see_the_same(package: Path) -> None:
    """Each public name stands in both lists, with the same module, and once."""
    for_type_checkers = list(imports_for_type_checkers(package))

    assert for_type_checkers
    assert sorted(for_type_checkers) == sorted(imports_on_first_use(package))
    assert len(set(for_type_checkers)) == len(for_type_checkers)


def test_the_names_are_there_before_they_are_used() -> None:
    """`dir`, `import *` and `hasattr` find them, each way the same objects."""
    imported("""
import nursery_queue as nq
assert set(nq.__all__) <= set(dir(nq))
assert "Worker" not in vars(nq)
assert hasattr(nq, "Worker")
assert vars(nq)["Worker"] is nq.Worker
everything = {}
exec("from nursery_queue import *", everything)
assert set(nq.__all__) <= set(everything)
assert everything["Worker"] is nq.Worker
""")


def test_a_name_that_there_is_not() -> None:
    """A misspelt name is an AttributeError, with a suggestion, and an ImportError with `from`."""
    misspelt = "Workers"
    with pytest.raises(AttributeError, match="'nursery_queue' has no attribute 'Workers'") as e:
        getattr(nq, misspelt)
    with pytest.raises(ImportError, match="cannot import name 'Workers'"):
        exec("from nursery_queue import Workers")  # noqa: S102  # a constant

    assert (e.value.name, e.value.obj) == ("Workers", nq)


def test_the_list_of_commands_says_what_they_say() -> None:
    """`nursery-queue --help` has the first sentence of each command's own help."""
    context = click.Context(commands)
    said: dict[str, str] = {}
    for name in commands.list_commands(context):
        command = commands.get_command(context, name)
        assert command is not None
        said[name] = command.get_short_help_str(limit=200)

    assert said == SENTENCES


FORK = """
import os, signal, sys, threading
import nursery_queue as nq

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "nursery_queue._client":
            begun.set()

begun = threading.Event()
sys.meta_path.insert(0, Watch())
threading.Thread(target=lambda: nq.Client, daemon=True).start()
begun.wait(60)
child = os.fork()
if child == 0:
    signal.alarm(60)
    nq.Client
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_fork_while_a_name_is_imported() -> None:
    """A process that is forked while another thread imports a name can use it."""
    done = subprocess.run(
        [sys.executable, "-c", FORK], check=False, capture_output=True, text=True, timeout=120
    )

    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_misspelt_command() -> None:
    """The one that may be meant is named, though no command has been imported."""
    program = "import sys; from nursery_queue.cli import main; sys.argv[1:] = ['statu']; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120
    )

    assert "Did you mean 'status'?" in done.stderr
