from __future__ import annotations

import os
import subprocess
import sys

from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
LEVEL = "print(logging.getLogger('nursery_queue').level)"
CLIENTS = "from nursery_queue.testing import MemoryStore; [nq.Client(MemoryStore()) for _ in '12']"


def run(*lines: str, **environment: str) -> tuple[str, str]:
    """Run a program that has imported the package; return what it says on stdout and stderr."""
    clean = {name: value for name, value in os.environ.items() if "NURSERY_QUEUE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", "; ".join(["import logging, nursery_queue as nq", *lines])],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize(
    ("asked", "level"),
    [("DEBUG", "10"), ("Warning", "30"), ("critical", "50"), (" error ", "40"), ("", "0")],
)
def test_the_environment_sets_the_level(asked: str, level: str) -> None:
    """The level is that of the variable, in whatever case; without one it is left alone."""
    assert run(CLIENTS, LEVEL, NURSERY_QUEUE_LOG_LEVEL=asked) == (level, "")


@pytest.mark.parametrize("asked", ["loud", "10", "WARN", "debug,info"])
def test_a_bad_level_is_told_once(asked: str) -> None:
    """A warning names the variable, its value and the default; nothing else comes of it."""
    level, said = run(CLIENTS, LEVEL, NURSERY_QUEUE_LOG_LEVEL=asked)

    assert level == "0"
    assert said == (
        f"NURSERY_QUEUE_LOG_LEVEL is {asked!r}, which is none of DEBUG, INFO, WARNING, ERROR,"
        " CRITICAL: going on with the default, WARNING"
    )


def test_it_is_told_in_the_log_of_the_application() -> None:
    """The warning waits for the first client, so that the application can set up its log."""
    setup = "import sys; logging.basicConfig(level='INFO', format='LOG %(message)s')"
    _, said = run(setup, CLIENTS, NURSERY_QUEUE_LOG_LEVEL="loud")

    assert said.startswith("LOG NURSERY_QUEUE_LOG_LEVEL is 'loud'")
    assert said.endswith("the default, INFO")
