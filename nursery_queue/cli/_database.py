"""Which database a command is about, and how errors speak of it."""

from __future__ import annotations

import contextlib
import getpass
import re

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from typing import Concatenate, ParamSpec, Self, TypeVar

import attrs
import click
import trio

from nursery_queue._client._client import Client
from nursery_queue._connect import connect
from nursery_queue._connect._admin import (
    DatabaseError,
    answer_in,
    check_schema,
    checked_schema,
    dsn_params,
    libpq_defaults,
    plain_dsn,
    sqlstate_of,
)
from nursery_queue._core._errors import TransientError
from nursery_queue._core._secrets import suspicious

from ._failures import PROBLEM, UNREACHABLE, USAGE, ProblemError
from ._settings import Dsn


P = ParamSpec("P")
R = TypeVar("R")

# No waiting and no other server cures these; libpq gives no SQLSTATE for them.
_MISCONFIGURED = re.compile(
    r"\binvalid (?:integer value|port number|\w+ value)|definition of service|service file"
)
_NO_RIGHT = "42501"
_HINTS: Mapping[str, str] = {
    "28P01": "give the right password in the DSN, in PGPASSWORD or in ~/.pgpass",
    "28000": "use a role that may log in from here, or let it in (pg_hba.conf)",
    "3D000": "create that database, or name another one",
    "25006": (
        "give a DSN that leads to the primary: this server is a standby, or"
        " default_transaction_read_only is on"
    ),
    _NO_RIGHT: (
        "use a role that may do this: `nursery-queue migrate sql --roles` prints one for each kind"
        " of program"
    ),
}
_HINTS_TO_WAIT: Mapping[str, str] = {
    "57014": "statement_timeout is too short for this server, or somebody has cancelled it",
}
FULL_FOR = 10.0  # seconds that a command waits for a full server; a person waits with it
_FULL = re.compile(r"takes no more|too many (?:clients|connections)|connection slots are reserved")


@attrs.frozen(kw_only=True)
class Database:
    """A schema of a database. As text it is how errors speak of it: without the password."""

    dsn: str = attrs.field(repr=False)
    schema: str
    origin: str  # what the DSN comes from
    params: Mapping[str, str] = attrs.field(repr=False)

    @classmethod
    def of(cls, dsn: Dsn, schema: str) -> Self:
        """Check settings. Raises `click.UsageError` if they cannot name a database."""
        text = plain_dsn(dsn.text)
        params: dict[str, str] = {}
        if (wrong := suspicious(text)) is None:
            try:
                params = dsn_params(text)
            except ValueError as exc:
                wrong = str(exc)
        if wrong is not None:
            raise click.UsageError(
                f"the DSN that comes from {dsn.origin} is neither a URL"
                " (postgresql://user@host/database) nor keywords (host=... dbname=...): " + wrong
            )
        return cls(dsn=text, schema=schema_name(schema), origin=dsn.origin, params=params)

    def __str__(self) -> str:
        if service := self.params.get("service"):
            return f"the database of service {service!r}"
        told = libpq_defaults() | dict(self.params)
        user = told.get("user") or getpass.getuser()
        return f"database {told.get('dbname') or user!r} on {_place(told)} as user {user!r}"

    @contextlib.contextmanager
    def explaining_errors(self, *, no_right: str = _HINTS[_NO_RIGHT]) -> Generator[None]:
        """Turn errors of the database into a `ProblemError` that says what to do.

        *no_right*: what to do if the role has no right to do this.
        """
        hints = {**_HINTS, _NO_RIGHT: no_right}
        try:
            yield
        except TransientError as exc:
            if (answer := answer_in(exc)) is None:
                raise self.unreachable(exc) from exc
            raise self.refused(answer, hints, UNREACHABLE) from exc
        except DatabaseError as exc:
            raise self.refused(exc, hints) from exc

    def unreachable(self, exc: BaseException) -> ProblemError:
        """Say that the database cannot be reached, and why."""
        if _MISCONFIGURED.search(str(exc)):
            return self.refused(exc)
        hint = f"is it running, and is it the right one? It was named by {self.origin}"
        if _FULL.search(str(exc)):
            hint = "close idle connections, bound pools (worker --pool-size), or allow"
            hint += " more (max_connections of the server, connection limit of database or role)"
        return ProblemError(f"cannot reach {self}:\n{_indented(exc)}", hint=hint, code=UNREACHABLE)

    def refused(
        self, exc: BaseException, hints: Mapping[str, str] = _HINTS, otherwise: int = PROBLEM
    ) -> ProblemError:
        """Say that the database refuses, and why; what has one of *hints* is to be configured."""
        sqlstate = sqlstate_of(exc)
        told = {**_HINTS_TO_WAIT, **hints}
        return ProblemError(
            f"refused by {self}:\n{_indented(exc)}",
            hint=told.get(sqlstate or "", f"the database was named by {self.origin}"),
            code=USAGE if sqlstate is None or sqlstate in hints else otherwise,
        )

    @contextlib.asynccontextmanager
    async def client(
        self, *, pool_size: int | None = None, full_for: float = FULL_FOR
    ) -> AsyncGenerator[Client]:
        """Open a client, or say why that is not possible.

        A server that takes no more connections is asked again for *full_for* seconds; that it is
        asked again is a line of the log, which a command without one has on stderr.
        """
        async with contextlib.AsyncExitStack() as stack:
            with self.explaining_errors():
                connecting = connect(self.dsn, schema=self.schema, pool_size=pool_size)
                client = None
                with trio.move_on_after(full_for):
                    client = await stack.enter_async_context(connecting)
                if client is None:
                    await check_schema(self.dsn, self.schema)  # asks once, and says what is wrong
                    raise TransientError(f"no connection within {full_for:g} s")
            try:
                yield client
            except DatabaseError as exc:
                if not_allowed(exc):
                    raise self.refused(exc) from exc
                raise

    def ask(self, question: Callable[[Client], Awaitable[R]]) -> R:
        """Run an async function of a client, and return its answer."""

        async def call() -> R:
            async with self.client() as client:
                return await question(client)

        return trio.run(call)

    def run(
        self,
        function: Callable[Concatenate[str, str, P], Awaitable[R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run an async *function* of DSN and schema, and say why if the database refuses."""

        async def call() -> R:
            return await function(self.dsn, self.schema, *args, **kwargs)

        with self.explaining_errors():
            return trio.run(call)


def not_allowed(exc: DatabaseError) -> bool:
    """Whether the role has no right to do this."""
    return sqlstate_of(exc) == _NO_RIGHT


def schema_name(schema: str) -> str:
    """Return *schema*, or raise `click.UsageError`."""
    try:
        return checked_schema(schema)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc


def _place(told: Mapping[str, str]) -> str:
    hosts = (told.get("host") or told.get("hostaddr") or "").split(",")
    ports = (told.get("port") or "5432").split(",")
    if len(ports) < len(hosts):
        ports *= len(hosts)
    return ", ".join(
        f"the socket in {host}" if host[:1] in {"/", "@"} else f"{host or 'this machine'}:{port}"
        for host, port in zip(hosts, ports, strict=False)
    )


def _indented(exc: BaseException) -> str:
    text = str(exc).strip() or type(exc).__name__
    return "\n".join(f"  {line.strip()}" for line in text.splitlines())
