"""Errors as messages and exit codes: what failed, on what, and what to do."""

from __future__ import annotations

import logging
import sys
import traceback

import attrs

from nursery_queue._core._errors import NurseryQueueError, SchemaError
from nursery_queue._core._exception_groups import leaves
from nursery_queue._core._secrets import redacted


CLEAN = 0
PROBLEM = 1  # also: stopped by force
USAGE = 2  # also: configuration
UNREACHABLE = 69  # EX_UNAVAILABLE of sysexits.h


class ProblemError(Exception):
    """A command cannot do what it was asked to; the words are for the user."""

    def __init__(self, message: str, *, hint: str | None = None, code: int = PROBLEM) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


class OutputClosedError(Exception):
    """The reader of the output has closed it, as `| head` does: time to end, quietly."""


@attrs.define
class Session:
    """How one run of the command line reports errors."""

    verbose: bool = False
    logs: bool = False  # errors go where the log goes, in its format

    def report(self, exc: BaseException) -> int:
        """Tell the user about an error and return the exit code for it."""
        exc = root_of(exc)
        problem = _as_problem(exc)
        message = redacted(str(problem))
        hint = problem.hint and redacted(problem.hint)
        if self.logs:
            log = logging.getLogger("nursery_queue.cli")
            text = message if hint is None else f"{message} ({hint})"
            log.error("%s", text, exc_info=exc if self.verbose else None)
            return problem.code
        if self.verbose:
            say(redacted("".join(traceback.format_exception(exc))))
        say(f"Error: {message}")
        if hint is not None:
            say(f"Hint: {hint}")
        elif not self.verbose and not isinstance(exc, ProblemError | NurseryQueueError):
            say("Hint: -v shows where this comes from")
        return problem.code


def say(text: str) -> None:
    """Write a line on stderr."""
    print(text.rstrip("\n"), file=sys.stderr, flush=True)


def root_of(exc: BaseException) -> BaseException:
    """Return the first error inside nested groups, which is the one that came first."""
    return next(leaves(exc))


def _as_problem(exc: BaseException) -> ProblemError:
    match exc:
        case ProblemError():
            return exc
        case SchemaError():
            return ProblemError(str(exc), code=USAGE)
        case NurseryQueueError():
            return ProblemError(str(exc))
        case _:
            return ProblemError(f"{type(exc).__name__}: {exc}")
