"""Libraries written for asyncio, in handlers of a real worker process."""

from __future__ import annotations

import re
import subprocess
import sys

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.command_line import environment, rows
from tests.support.databases import Stock


HERE = Path(__file__).parent
NAMES = re.findall(
    r'^@(?:on_asyncio|in_a_thread)\(name="(.+)"\)', (HERE / "handlers.py").read_text(), re.MULTILINE
)
PROGRAMS = {
    "nursery-queue": ["-m", "nursery_queue", "worker", "handlers:app", "--drain"],
    "embedded": ["handlers.py"],
}
OUTCOMES = """
    select task_type, state, result,
           (select string_agg(error_traceback, '') from nursery_queue.task_attempt a
             where a.task_id = t.id)
      from nursery_queue.task_status t
"""


@pytest.fixture(scope="module", params=PROGRAMS)
def outcomes(
    request: pytest.FixtureRequest, migrated_databases: Stock
) -> Generator[dict[str, tuple[object, ...]]]:
    """What became of a task of each type in one worker process."""
    with migrated_databases.lend() as database:
        for name in NAMES:
            rows(database.dsn, "insert into nursery_queue.task (task_type) values (%s)", [name])
        done = subprocess.run(
            [sys.executable, *PROGRAMS[request.param]],
            cwd=HERE,
            # Some of these libraries warn of what is deprecated in the others.
            env=environment({"NURSERY_QUEUE_DSN": database.dsn, "PYTHONWARNINGS": "default"}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "never retrieved" not in done.stderr
        assert "never awaited" not in done.stderr
        yield {row[0]: row[1:] for row in rows(database.dsn, OUTCOMES)}


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(outcomes: dict[str, tuple[object, ...]], name: str) -> None:
    """The library does in a handler what it does in a program of its own."""
    assert outcomes[name] == ("succeeded", 42, None)
