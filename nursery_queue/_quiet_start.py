"""Ctrl-C while the command line is still being imported: one line, and not a traceback.

Imported first of all by the package, and does nothing in any other program: signal handlers
are the program's.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


INTERRUPTED = 130  # what shells call a program that was ended by Ctrl-C

_state = {"armed": False}


def arm() -> None:
    """End at once on Ctrl-C, if this process is the command line and has only begun."""
    named = os.path.basename(sys.argv[0] if sys.argv else "")  # noqa: PTH119  # pathlib is slow
    command = [each for each in sys.orig_argv[1:4] if each != "-P"]  # as cli/_interpreter.py has it
    ours = named == "nursery-queue" or command[:2] == ["-m", "nursery_queue"]
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours and usual and threading.current_thread() is threading.main_thread():
        _state["armed"] = True
        signal.signal(signal.SIGINT, _leave)


def disarm() -> None:
    """Let Ctrl-C be an exception again, from now on, for those who clean up."""
    if _state["armed"] and signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def rearm() -> None:
    """End at once on Ctrl-C again: all that is left to do is the interpreter's own end.

    A worker's own handler stays: its exit code is said already.
    """
    if _state["armed"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def deafen() -> None:
    """Ignore from now on what has a handler: the interpreter takes those away while it ends.

    Then a signal would kill the process, and its exit code would be another one. Registered
    with `atexit` before any application is imported, so it comes after all of their hooks.
    """
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if callable(handler := signal.getsignal(signum)) and (
            handler is not signal.default_int_handler
        ):
            signal.signal(signum, signal.SIG_IGN)


def _leave(_signum: int, _frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


arm()
