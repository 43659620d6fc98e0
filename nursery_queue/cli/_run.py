"""One run: parse, do, say what went wrong, and end with the right code."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from collections.abc import Sequence
from typing import cast

import click

from nursery_queue._core._secrets import redacted
from nursery_queue._quiet_start import INTERRUPTED

from ._commands import commands
from ._failures import CLEAN, PROBLEM, OutputClosedError, Session, root_of, say


def run(args: Sequence[str]) -> int:
    """Run the command line and return its exit code; never raises but for bugs of its own."""
    with contextlib.suppress(AttributeError):  # what tests put in its place may be simpler
        cast("io.TextIOWrapper", sys.stdout).reconfigure(errors="backslashreplace")
    session = Session()
    code = _dispatch(args, session)
    try:
        sys.stdout.flush()
    except OSError as exc:
        _forget_stdout()
        if not isinstance(exc, BrokenPipeError):
            say(f"Error: could not write the output: {exc}")
            return PROBLEM
    return code


def _dispatch(args: Sequence[str], session: Session) -> int:
    try:
        result = commands.main(
            args=list(args), prog_name="nursery-queue", standalone_mode=False, obj=session
        )
    except BaseException as exc:  # noqa: BLE001  # the end of the line: told, never swallowed
        return _code_for(exc, session)
    return result if isinstance(result, int) else CLEAN


def _code_for(exc: BaseException, session: Session) -> int:
    """Tell what has happened and return the exit code."""
    if isinstance(exc, click.ClickException):
        text = io.StringIO()
        exc.show(file=text)
        say(redacted(text.getvalue()))
        return exc.exit_code
    match root_of(exc):
        case click.Abort() | KeyboardInterrupt():
            return _interrupted()
        case SystemExit() if isinstance(exc, SystemExit):
            return CLEAN  # click ends so when the reader of its help has gone, and only then
        case OutputClosedError():
            _forget_stdout()
            return CLEAN
        case _:
            return session.report(exc)


def _interrupted() -> int:
    """Say so in one line; what had been started has been stopped on the way here."""
    say("interrupted")
    return INTERRUPTED


def _forget_stdout() -> None:
    """Keep the interpreter from complaining, at its end, that it cannot flush."""
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
