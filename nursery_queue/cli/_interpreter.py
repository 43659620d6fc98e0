"""How to start another process of this program."""

from __future__ import annotations

import sys


def python() -> list[str]:
    """Return the command for a module, which finds the same modules as this process.

    Python puts the current directory first for `-m`, and not for the script `nursery-queue`: there
    may be another copy of the package, or a `queue.py`.
    """
    return [sys.executable] if "-m" in sys.orig_argv else [sys.executable, "-P"]
