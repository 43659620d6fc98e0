"""One run: parse, do, say what went wrong, and end with the right code."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from collections.abc import Sequence
from typing import cast

import click

from ._errors import CLEAN, PROBLEM, OutputClosedError, Session, root_of, say
from ._group import commands
from ._secrets import redacted


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
    except click.ClickException as exc:
        text = io.StringIO()
        exc.show(file=text)
        say(redacted(text.getvalue()))
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return PROBLEM
    except SystemExit:  # click ends so when the reader of its help has gone, and only then
        return CLEAN
    except BaseException as exc:  # noqa: BLE001  # the end of the line: told, never swallowed
        if isinstance(root_of(exc), OutputClosedError):
            _forget_stdout()
            return CLEAN
        return session.report(exc)
    return result if isinstance(result, int) else CLEAN


def _forget_stdout() -> None:
    """Keep the interpreter from complaining, at its end, that it cannot flush."""
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
