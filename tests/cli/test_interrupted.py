"""Ctrl-C before a command has begun."""

from __future__ import annotations

import os
import subprocess
import sys

from pathlib import Path

import pytest

from tests.support.command_line import CHECKOUT, PATIENCE, command, environment


# Python imports it by itself. It presses Ctrl-C when a module is about to be imported.
PRESSED = """
import os
import signal
import sys

class Press:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["PRESSED_AT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Press())
"""
MODULES = [
    *("trio", "psycopg", "nursery_queue._worker._worker"),
    *("click", "nursery_queue.cli._run", "shop"),
]


def interrupted(project: Path, at: str, *words: str) -> subprocess.CompletedProcess[str]:
    (project / "sitecustomize.py").write_text(PRESSED)
    path = os.pathsep.join(map(str, (project, CHECKOUT)))
    return subprocess.run(
        words,
        cwd=project,
        env=environment({"PYTHONPATH": path, "PRESSED_AT": at}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("what", ["worker", "dev"])
@pytest.mark.parametrize("at", MODULES)
def test_ctrl_c_while_it_is_starting(project: Path, at: str, what: str) -> None:
    """One line, exit code 130, and nothing is left behind, whatever was being imported."""
    done = interrupted(project, at, *command(what, "shop:app"))

    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "interrupted")
    assert not (project / ".nursery_queue" / "data" / "postmaster.pid").exists()


def test_ctrl_c_while_the_demo_is_starting(project: Path) -> None:
    """The demo has nothing to say either."""
    done = interrupted(project, "psycopg", sys.executable, "-m", "examples.checksum_tree")

    assert (done.returncode, done.stdout, done.stderr) == (-2, "", "")


def test_other_programs_are_left_alone(project: Path) -> None:
    """A program that imports the package has Python's own way with Ctrl-C."""
    program = "import signal; before = signal.getsignal(2); import nursery_queue.cli;"
    program += "assert signal.getsignal(2) is before is signal.default_int_handler"
    done = interrupted(project, "nobody", sys.executable, "-c", program)

    assert (done.returncode, done.stderr) == (0, "")
