"""Run a command with NURSERY_QUEUE_TEST_DSN naming a throwaway server of some PostgreSQL.

Usage: python tests/on_postgres.py DIRECTORY_OF_ITS_PROGRAMS COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from pathlib import Path

from nursery_queue._embedded import serve


def main(programs: str, *command: str) -> int:
    """Return the exit code of *command*; the server is gone by then."""
    with (
        tempfile.TemporaryDirectory(prefix="nursery-queue-") as path,
        serve(path, programs=Path(programs), durable=False, tcp=True) as server,
    ):
        environment = {**os.environ, "NURSERY_QUEUE_TEST_DSN": server.dsn}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
