"""Opening a connection: defaults, one attempt after another, and why one was refused."""

from __future__ import annotations

import os
import re

import psycopg
import trio

from psycopg import errors, pq
from psycopg.abc import ConnDict, ConnParam
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq.abc import PGconn

from nursery_queue._trio._clock import held

from ._database_errors import is_transient
from ._hosts import Hosts, address_of, attempts, names_several, param, patience, share


# A peer that is gone without a word is noticed within about 25 s; by Linux's defaults after two
# hours. `tcp_user_timeout` alone does nothing for an idle connection, which sends nothing. Behind a
# frozen middlebox, which answers the probes, only a question to the server helps (`Listener`,
# `Pool`).
KEEPALIVE: dict[str, ConnParam] = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

# libpq gives the text of a refusal but not its SQLSTATE. These are the refusals that waiting does
# not cure, and one that passes, but not soon. A refusal in other words (another language) counts as
# passing with time: a worker that retries is better than one that gives up
# (tests/pg/test_errors.py).
_REFUSALS: tuple[tuple[re.Pattern[str], type[psycopg.Error]], ...] = (
    (re.compile(r"^invalid "), psycopg.ProgrammingError),  # the value of an option
    (re.compile(r"authentication failed for user"), errors.InvalidPassword),
    (
        re.compile(r'role ".*" (does not exist|is not permitted to log in)|pg_hba\.conf'),
        errors.InvalidAuthorizationSpecification,
    ),
    (re.compile(r'database ".*" does not exist'), errors.InvalidCatalogName),
    (re.compile(r'permission denied for database ".*"'), errors.InsufficientPrivilege),
    # This passes, but not by trying again at once: see `Pool`. The last text is a pooler's.
    (
        re.compile(
            r"too many clients already|connection slots are reserved"
            r"|too many connections for|no more connections allowed"
        ),
        errors.TooManyConnections,
    ),
)


async def open_pgconn(conninfo: str, hosts: Hosts | None = None, /, **kwargs: ConnParam) -> PGconn:
    """Connect to the first host that accepts, as libpq and psycopg do.

    Cancelling it leaves nothing open. Raises the psycopg error with the SQLSTATE of the refusal if
    waiting does not cure it; `OperationalError` otherwise. `connect_timeout` bounds each attempt,
    5 s by default; less where the caller has less time for all of them. Several hosts have to take
    writes, unless `target_session_attrs` says otherwise. *hosts* remembers which answered.
    """
    params = _with_defaults(conninfo_to_dict(conninfo, **kwargs))
    hosts, limit = hosts or Hosts(), patience(params)
    with held():  # a name is looked up in a thread, which a virtual clock cannot see
        found, failures = await attempts(params, limit)
        if len(found) > 1 and param(params, "target_session_attrs") != "prefer-standby":
            shuffled = param(params, "load_balance_hosts") == "random"
            found = hosts.in_order(found, shuffled=shuffled)
        for number, attempt in enumerate(found):
            seconds = share(limit, len(found) - number) if len(found) > 1 else limit
            address = address_of(attempt)
            try:
                with trio.move_on_after(seconds):
                    pgconn = await _attempt(make_conninfo("", **attempt))
                    primary = param(params, "target_session_attrs") in {"read-write", "primary"}
                    hosts.answered(address, primary=primary)
                    return pgconn
                failures.append(_too_slow(attempt, seconds))
                hosts.failed(address, silent=True)
            except psycopg.Error as exc:
                failures.append(exc)
                hosts.failed(address)
    raise _sum_up(failures)


def _with_defaults(params: ConnDict) -> ConnDict:
    params.setdefault("fallback_application_name", "nursery_queue")
    if names_several(params) and not param(params, "target_session_attrs"):
        params["target_session_attrs"] = "read-write"  # a standby takes no tasks
    # A service file counts less than the conninfo, so our defaults would override it
    # (tests/pg/test_connection.py, keepalive of a service).
    if "service" not in params and "PGSERVICE" not in os.environ:
        params = {**KEEPALIVE, **params}
    # Also if the DSN says otherwise: tasks have text that no other encoding can hold, and with
    # SQL_ASCII psycopg would return bytes (tests/pg/test_encodings.py).
    params["client_encoding"] = "UTF8"
    return params


async def _attempt(conninfo: str) -> PGconn:
    # Not by psycopg's generator for connecting: its signature has changed within 3.3, and it closes
    # the socket only when it is collected (tests/pg/test_connection.py, cancelled connect).
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    try:
        await _poll(pgconn)
    except BaseException:
        pgconn.finish()
        raise
    pgconn.nonblocking = 1
    return pgconn


async def _poll(pgconn: PGconn) -> None:
    while pgconn.status != pq.ConnStatus.BAD:
        status = pgconn.connect_poll()
        if status == pq.PollingStatus.OK:
            return
        if status == pq.PollingStatus.READING:
            await trio.lowlevel.wait_readable(pgconn.socket)
        elif status == pq.PollingStatus.WRITING:
            await trio.lowlevel.wait_writable(pgconn.socket)
        else:
            break
    raise _refusal(pgconn)


def _refusal(pgconn: PGconn) -> psycopg.Error:
    text = pgconn.get_error_message()
    kind: type[psycopg.Error] = psycopg.OperationalError
    if pgconn.needs_password:  # the server wants one, and we have none
        kind = errors.InvalidPassword
    for pattern, known in _REFUSALS:
        if pattern.search(text):
            kind = known
            break
    return kind(f"connection failed: {text}", pgconn=errors.finish_pgconn(pgconn))


def _too_slow(attempt: ConnDict, timeout: float) -> psycopg.Error:
    where = f"host {attempt.get('host')!r}, port {attempt.get('port')!r}"
    return errors.ConnectionTimeout(
        f"connection failed: {where} did not answer within {timeout:.3g} s"
    )


def _sum_up(failures: list[psycopg.Error]) -> psycopg.Error:
    """Make one error of several; it passes with time if any of them does."""
    if len(failures) == 1:
        return failures[0]
    worst = next((exc for exc in failures if is_transient(exc)), failures[-1])
    texts = "\n".join(f"- {exc}" for exc in failures)
    return type(worst)(f"no host could be connected to:\n{texts}", pgconn=worst.pgconn)
