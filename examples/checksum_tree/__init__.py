"""One task for each file of a directory, run by workers of which one is killed.

    python -m examples.checksum_tree [DIRECTORY]

Read `app.py` first (what a task does), then `worker.py` (who does it), then `__main__.py` (who
asks for it). `report.py` checks that every task had its effect once, whatever happened.
"""

from __future__ import annotations

import signal
import sys


if sys.orig_argv[1:3] == ["-m", __name__]:
    # Ctrl-C while the imports go on: nothing has begun, so there is nothing to say.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
