"""The command `nursery-queue`: the only place that prints, and that knows exit codes."""

from __future__ import annotations

import atexit
import importlib.util
import sys

from collections.abc import Sequence

from nursery_queue._quiet_start import deafen, rearm

from ._standard_streams import open_missing


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: clean. 1: a problem, or a forced stop. 2: usage or configuration. 69: the database
    could not be reached at the start. 130: interrupted while it was starting.

    Args:
        args: The arguments; by default those of the process.
    """
    open_missing()
    if any(importlib.util.find_spec(name) is None for name in ("click", "rich")):
        print(
            "nursery-queue: the command line is an extra: pip install 'nursery-queue[cli]'",
            file=sys.stderr,
        )
        return 2
    from ._run import run

    if args is None:
        atexit.register(deafen)
    try:
        return run(sys.argv[1:] if args is None else args)
    finally:
        rearm()
