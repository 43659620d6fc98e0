"""Which errors of the database pass with time, and which are about rows, rights or conflicts."""

from __future__ import annotations

import contextlib

from collections.abc import Generator

import psycopg

from nursery_queue._core._errors import (
    CommitOutcomeUnknown,
    DatabaseRefused,
    NoConnection,
    TransientError,
)
from nursery_queue._core._excuses import Excuse, excuse


_TRANSIENT_CLASSES = frozenset(
    {
        "08",  # connection exceptions
        "53",  # out of connections, memory or disk
    }
)
_TRANSIENT = frozenset(
    {
        "25006",  # read only: a standby after a failover, until we reach the new primary
        "25P03",  # closed by idle_in_transaction_session_timeout
        "25P04",  # closed by transaction_timeout
        "40001",  # serialization failure
        "40P01",  # deadlock
        "55P03",  # lock not available, lock_timeout
        # statement_timeout on a busy server, or an operator's pg_cancel_backend. Only the text, in
        # the server's language, tells them apart. Our own cancellations never surface as this.
        "57014",
        "57P01",  # the server is being shut down, or an operator closed this connection
        "57P02",  # the server crashed
        "57P03",  # the server is starting up or shutting down
        "57P05",  # closed by idle_session_timeout
    }
)
# The transaction was sound, and another one was in its way: to be repeated from its beginning.
_CONFLICTS = frozenset({"40001", "40P01"})
# About the rows that a statement was to write: other rows may be accepted.
_OF_THE_ROWS = frozenset(
    {
        "21",  # cardinality violation
        "22",  # data exception
        "23",  # constraint violation
        "44",  # a view's check option
        "54",  # program limit exceeded
        "P0",  # raised on purpose, by a trigger of the user's
    }
)


# Sent while the server has no statement of ours to run, so a write was not made.
_BEFORE_THE_STATEMENT = frozenset({"57P05"})  # closed by idle_session_timeout


class CallTimeout(psycopg.OperationalError):
    """The database did not answer within the time allowed for one call."""

    __module__ = "nursery_queue"  # what users read in tracebacks


class NotConnected(psycopg.OperationalError):
    """No connection could be opened, for a reason that passes with time."""

    __module__ = "nursery_queue"  # what users read in tracebacks


class PoolTimeout(NotConnected):
    """No connection of the pool became free in time, and no other one could be opened."""

    __module__ = "nursery_queue"  # what users read in tracebacks


def is_transient(exc: BaseException) -> bool:
    """Tell whether trying again later may help.

    Judged by SQLSTATE. Without one, an `OperationalError` is a lost connection, a server
    that cannot be reached or a time limit, and so is an `OSError`: these pass. Anything
    else, such as a wrong password, bad conninfo or a missing table, does not.
    """
    if isinstance(exc, psycopg.Error):
        if exc.sqlstate is None:
            return isinstance(exc, psycopg.OperationalError)
        return exc.sqlstate[:2] in _TRANSIENT_CLASSES or exc.sqlstate in _TRANSIENT
    return isinstance(exc, TransientError | OSError)


def is_refusal(exc: BaseException) -> bool:
    """Tell whether the database refuses any rows, until its rights or tables are mended.

    Rights that are missing or tables that are not as expected, for instance: all that has an
    SQLSTATE, does not pass with time and is not about the rows.
    """
    if not isinstance(exc, psycopg.Error) or exc.sqlstate is None:
        return False
    return not is_transient(exc) and exc.sqlstate[:2] not in _OF_THE_ROWS


def is_conflict(exc: BaseException) -> bool:
    """Tell whether a serialization failure or a deadlock has ended the transaction."""
    return isinstance(exc, psycopg.Error) and exc.sqlstate in _CONFLICTS


def is_answer(exc: BaseException) -> bool:
    """Tell whether this is how the server answered a statement: then that had no effect.

    Severity ERROR is an answer: rolled back. FATAL is not: it may come after the commit.
    Nor is an error that the client notices itself, such as a lost connection.
    """
    return _severity(exc) == "ERROR"


def leaves_unknown(exc: BaseException, *, closed: bool) -> bool:
    """Tell whether a write that commits by itself and ended so may have been made.

    *closed*: its connection is closed by now. While that is open, all that was sent has been
    answered.
    """
    if is_answer(exc) or getattr(exc, "sqlstate", None) in _BEFORE_THE_STATEMENT:
        return False
    return closed or _severity(exc) in {"FATAL", "PANIC"}


def _severity(exc: BaseException) -> object:
    diag = getattr(exc, "diag", None)  # of psycopg's errors, and of psycopg2's
    return getattr(diag, "severity_nonlocalized", None)


def unknown(exc: BaseException) -> CommitOutcomeUnknown:
    """Return the error for a write whose answer was lost by *exc*."""
    return CommitOutcomeUnknown(
        f"the connection was lost before the answer came ({str(exc).strip()}): this may or may "
        "not have been carried out, so look before you do it again"
    )


def is_of_the_rows(exc: BaseException) -> bool:
    """Tell whether the database refuses rows that it was given, while others may do."""
    if not isinstance(exc, psycopg.Error) or exc.sqlstate is None:
        return False
    return exc.sqlstate[:2] in _OF_THE_ROWS


@contextlib.contextmanager
def translated_for_workers() -> Generator[None]:
    """Translate as `translated` does, and raise `DatabaseRefused` for a refusal."""
    try:
        with translated():
            yield
    except psycopg.Error as exc:
        if not is_refusal(exc):
            raise
        raise DatabaseRefused(str(exc) or type(exc).__name__) from exc


@contextlib.contextmanager
def translated() -> Generator[None]:
    """Raise `TransientError` for a database or network error that passes with time.

    `NoConnection` if that has kept a connection from being had at all.

    All else goes through as it is, `CommitOutcomeUnknown` included. Do not put a nursery
    inside: an exception group is not looked into.
    """
    try:
        yield
    except (psycopg.Error, OSError) as exc:
        if not is_transient(exc):
            raise
        if is_conflict(exc):
            excuse(exc, Excuse.CONFLICT)
        if isinstance(exc, NotConnected):
            raise unconnected(str(exc)) from exc
        raise TransientError(str(exc) or type(exc).__name__) from exc


def unconnected(why: str) -> NoConnection:
    """Return the error for a caller without a connection; it excuses a handler."""
    error = NoConnection(why)
    excuse(error, Excuse.NO_CONNECTION)
    return error
