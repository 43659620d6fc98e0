"""A psycopg connection that waits with trio.

psycopg's protocol code is generators that say which event to wait for. Replaced here are the
waiting, the lock, connecting, cancelling and `notifies()`; cursors, COPY, pipelines and the
rest are psycopg's own.

A call that raised `Cancelled` had no effect, or the connection is closed. A call that took
effect returns, even if its scope has been cancelled meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import logging

from collections.abc import AsyncGenerator, Generator
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
import trio

from psycopg import pq
from psycopg.abc import AdaptContext, ConnParam, PQGen
from psycopg.adapt import AdaptersMap
from psycopg.errors import CancellationTimeout, QueryCanceled
from psycopg.pq.abc import PGconn
from psycopg.rows import AsyncRowFactory, TupleRow

from nursery_queue._trio._clock import ClockStuck, really_move_on_after
from nursery_queue._trio._connection_use import awaiting_answer

from ._cancelling import request_cancel
from ._connecting import open_pgconn
from ._database_errors import CallTimeout
from ._hosts import Hosts
from ._notifications import receive, take_backlog
from ._own_statements import OwnStatements
from ._session_clock import SessionClock, nothing
from ._transaction_block import TransactionBlock, check_committable, truthful_commit
from ._waiting import READ, Lock, Turn, drive, ready_now


RV = TypeVar("RV")

_STATUS = pq.TransactionStatus
_ACTIVE, _IDLE, _INERROR = _STATUS.ACTIVE, _STATUS.IDLE, _STATUS.INERROR
_log = logging.getLogger(__name__)


class ServerCursor(psycopg.AsyncServerCursor[TupleRow]):
    """psycopg's, with CLOSE shielded and bounded."""

    async def close(self) -> None:
        # psycopg closes the cursor as its block is left. In a scope that is cancelled already a
        # CLOSE without a shield would raise before it is sent, and leave the portal open.
        if isinstance(self.connection, Connection):
            with self.connection.finishing("CLOSE"):
                await super().close()


class Connection(OwnStatements):
    """A connection to PostgreSQL; everything of `psycopg.AsyncConnection` works under trio.

    `call_timeout` bounds, in seconds, every wait for an answer: on expiry the statement is
    cancelled and `CallTimeout` raised (None: the caller's cancel scopes rule).
    """

    call_timeout: float | None = None
    clock: SessionClock | None = None
    pooled = False  # another client has the session after each of our transactions
    isolation = "read committed"  # the default of the role or the database
    unusual = False  # these have settings that would break our own statements
    cancel_timeout = 5.0  # seconds to cancel a statement and read its answer; then we close
    finish_timeout = 10.0  # seconds for BEGIN, COMMIT and ROLLBACK, else we close

    def __init__(self, pgconn: PGconn, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        # psycopg's own is an asyncio.Lock, which cannot be waited for under trio.
        self.lock = Lock()  # type: ignore[assignment]  # psycopg only enters and leaves it
        self.server_cursor_factory = ServerCursor
        self._turn = Turn()
        self._in_finishing = 0

    @classmethod
    async def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = True,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[TupleRow] | None = None,
        cursor_factory: type[psycopg.AsyncCursor[TupleRow]] | None = None,
        **kwargs: ConnParam,
    ) -> Self:
        """Connect, with TCP keepalive and an application name unless *conninfo* says otherwise.

        Tries several hosts in turn, each for `connect_timeout` seconds. Cancelling it leaves
        nothing open. A refusal that waiting does not cure has its SQLSTATE.
        """
        conn = cls(await open_pgconn(conninfo, None, **kwargs))
        conn._autocommit = autocommit
        conn.prepare_threshold = prepare_threshold
        if context is not None:
            conn._adapters = AdaptersMap(context.adapters)
        if row_factory is not None:
            conn.row_factory = row_factory
        if cursor_factory is not None:
            conn.cursor_factory = cursor_factory
        return conn

    @classmethod
    async def connect_to(cls, hosts: Hosts, conninfo: str) -> Self:
        """Connect in autocommit mode, in the order that *hosts* remembers; see `connect`."""
        conn = cls(await open_pgconn(conninfo, hosts))
        conn._autocommit = True
        return conn

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        try:
            await super().__aexit__(exc_type, exc_val, exc_tb)
        finally:
            self.abort()

    async def close(self) -> None:
        """Close, waking any task that waits for this connection; it gets `OperationalError`."""
        self._wake_waiters()
        await super().close()

    def abort(self) -> None:
        """Close at once, whatever is going on, waking any task that waits for it."""
        self._wake_waiters()
        self.pgconn.finish()

    def _wake_waiters(self) -> None:
        self._fetch_cursor = None  # a cycle, which would keep the socket until the next collection
        if not self.closed:
            # Before the socket is closed: epoll forgets a closed file without a word, and the task
            # that waits for it would sleep for ever (tests/pg/test_connection.py, closing wakes).
            trio.lowlevel.notify_closing(self.pgconn.socket)

    def notice_loss(self) -> None:
        """Find out, without waiting, whether the peer has hung up.

        libpq notes it only when it reads: until then a dead connection counts as open.
        """
        with contextlib.suppress(psycopg.OperationalError):
            while not self.closed and ready_now(self.pgconn.socket, READ):
                self.pgconn.consume_input()

    # -- waiting -----------------------------------------------------------------------

    async def wait(
        self,
        gen: PQGen[RV],
        interval: float = 0.0,  # noqa: ARG002  # psycopg polls, we need not
        timeout: float | None = None,  # noqa: ASYNC109  # psycopg's signature
    ) -> RV:
        """Run one of psycopg's generators to its end."""
        limit = self.call_timeout if timeout is None else timeout
        if limit is None or self._in_finishing:
            return await self._wait(gen)
        with trio.move_on_after(limit):
            return await self._wait(gen)
        raise CallTimeout(f"no answer from the database within {limit:g} s; the call was cancelled")

    @trio.lowlevel.enable_ki_protection  # Ctrl-C comes where it waits, and nowhere between
    async def _wait(self, gen: PQGen[RV]) -> RV:
        if not self._in_flight():
            # Nothing is sent yet, so `Cancelled` here is true. Between the rounds of a statement
            # that has begun there is no such checkpoint: cancellation in trio is level-triggered,
            # and psycopg's own clean-up runs in the cancelled scope
            # (tests/pg/test_cancellation.py).
            await trio.lowlevel.checkpoint_if_cancelled()
            if self.clock is not None:
                gen = self.clock.before(self, gen)
        try:
            return await drive(gen, self.pgconn, self._turn)
        except QueryCanceled:
            # The answer to our own request, if an earlier round of this COPY or stream was
            # cancelled: the caller is to see `Cancelled`. Else an operator's, and an error.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise
        except trio.Cancelled:
            if not self.closed and self._in_flight():
                outcome = await self._resync(gen)
                if outcome is not None:
                    # It took effect, so it returns: `Cancelled` comes at the next checkpoint. With
                    # asyncio's psycopg, 65 % of the INSERTs that were cancelled had been made.
                    return outcome[0]
            raise
        except KeyboardInterrupt:
            if not self.closed and self._in_flight():
                await self._resync(gen)
            raise
        except ClockStuck:
            self.abort()  # a lock is waited for whose owner sleeps in virtual time: no answer comes
            raise
        finally:
            # The generator has ended, or never began, or its connection is closed. In the last case
            # its own clean-up can only fail: here, not when it is collected some time later.
            with contextlib.suppress(psycopg.Error):
                gen.close()

    def _in_flight(self) -> bool:
        """Tell whether the server may be doing, or be about to be told, something of ours."""
        return self._pipeline is not None or self.pgconn.transaction_status == _ACTIVE

    async def _resync(self, gen: PQGen[RV]) -> tuple[RV] | None:
        """Cancel the statement in flight; return its value if it completed all the same.

        Reads the server's answer in any case, or closes the connection.
        """
        # The answer has to be read: else the next statement would get it as its own. Shielded,
        # since the scope is cancelled already; bounded, since a dead server answers neither the
        # request nor the statement (tests/pg/test_cancellation.py, without peer).
        patience = min(0.25, self.cancel_timeout)
        answered = False
        try:
            deadline = trio.current_time() + self.cancel_timeout
            with awaiting_answer(), trio.CancelScope(shield=True, deadline=deadline):
                while 0 < patience <= self.cancel_timeout:
                    await self._ask_to_cancel(self.cancel_timeout)
                    with really_move_on_after(patience):
                        try:
                            value = await drive(gen, self.pgconn, self._turn, begun=True)
                        except psycopg.Error:
                            answered = True
                            return None
                        answered = True
                        return (value,)
                    # Not in time: the request may have hit the BEGIN or PREPARE that psycopg sent
                    # first, and the statement itself was sent afterwards. So ask again.
                    patience *= 2  # type: ignore[unreachable]  # mypy thinks the block ends here
        finally:
            if not answered:
                self.abort()
        return None

    @contextlib.contextmanager
    def finishing(self, what: str) -> Generator[None]:
        """Shield BEGIN, COMMIT or ROLLBACK; close the connection if it takes too long."""
        # Level-triggered cancellation would keep a ROLLBACK from being sent at all. The time limit
        # is its own: a short `call_timeout` must not make the outcome of a COMMIT unknown
        # (tests/pg/test_cancellation.py, call timeout is not for commit).
        self._in_finishing += 1
        try:
            deadline = trio.current_time() + self.finish_timeout
            with awaiting_answer(), trio.CancelScope(shield=True, deadline=deadline) as scope:
                yield
        finally:
            self._in_finishing -= 1
        if scope.cancelled_caught:
            self.abort()
            msg = f"{what} took longer than {self.finish_timeout:g} s; the connection was closed"
            raise CallTimeout(msg)

    # -- cancelling --------------------------------------------------------------------

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109  # psycopg's signature
        """Ask the server to cancel the statement of this connection."""
        if self.closed:
            return
        with trio.move_on_after(timeout or float("inf")) as scope:
            await request_cancel(self)
        if scope.cancelled_caught:
            msg = f"the server did not take the cancel request within {timeout:g} s"
            raise CancellationTimeout(msg)

    # psycopg calls it when a stream or a COPY is left early, maybe in a cancelled scope.
    async def _try_cancel(self, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109  # psycopg's signature
        with trio.CancelScope(shield=True):
            await self._ask_to_cancel(timeout)

    async def _ask_to_cancel(self, seconds: float) -> None:
        try:
            await self.cancel_safe(timeout=seconds)
        except psycopg.Error as exc:
            _log.warning("the server could not be asked to cancel a statement: %s", exc)

    # -- transactions and pipelines ------------------------------------------------------

    async def commit(self) -> None:
        """Commit; raises `CommitOutcomeUnknown` if the connection is lost meanwhile."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            check_committable(self)
        except psycopg.errors.InFailedSqlTransaction:
            await self.rollback()
            raise
        with truthful_commit(), self.finishing("COMMIT"):
            await super().commit()

    async def rollback(self) -> None:
        """Roll back; shielded from cancellation, bounded by `finish_timeout`."""
        with self.finishing("ROLLBACK"):
            await super().rollback()

    @contextlib.asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncGenerator[TransactionBlock]:
        """Open a transaction, or a savepoint if one is open.

        Left without an exception: committed. Left by `CommitOutcomeUnknown`: the connection
        died during COMMIT. Left by anything else, `Cancelled` included: rolled back.
        """
        block = TransactionBlock(self, savepoint_name, force_rollback)
        if self._pipeline is None:
            async with block:
                yield block
        else:
            async with self.pipeline(), block, self.pipeline():
                yield block

    @contextlib.asynccontextmanager
    async def pipeline(self) -> AsyncGenerator[psycopg.AsyncPipeline]:
        """Send statements without waiting for each answer.

        In autocommit mode, leaving the block by an exception undoes all statements since the
        last sync.
        """
        # Statements of a pipeline share one implicit transaction up to the next sync. psycopg syncs
        # also when the block is left by an exception, which would commit them: so roll back first.
        undo = (
            self._pipeline is None and self._autocommit and self.pgconn.transaction_status == _IDLE
        )
        if self._pipeline is None and self.clock is not None:
            async with self.lock:
                await self.wait(nothing())  # inside, the session could not be told the time
        try:
            async with super().pipeline() as pipeline:
                try:
                    yield pipeline
                except BaseException:
                    if undo and not self.closed:
                        with contextlib.suppress(psycopg.Error), self.finishing("ROLLBACK"):
                            await self.execute("ROLLBACK")
                    raise
        except BaseException:
            await self._recover_from_pipeline(self.lock)
            raise

    @contextlib.asynccontextmanager
    async def _pipeline_nolock(self) -> AsyncGenerator[psycopg.AsyncPipeline]:
        """The one inside `executemany()`, which holds the lock."""
        try:
            async with super()._pipeline_nolock() as pipeline:
                yield pipeline
        except BaseException:
            await self._recover_from_pipeline(contextlib.nullcontext())
            raise

    async def _recover_from_pipeline(
        self, lock: contextlib.AbstractAsyncContextManager[None]
    ) -> None:
        with contextlib.suppress(psycopg.Error), self.finishing("DEALLOCATE"):
            async with lock:
                if self._pipeline is None and not self.closed and self.pgconn.pipeline_status:
                    self.abort()  # answers are missing: it could not be used again
                # After an error the server skips the rest of a pipeline, PREPAREs too, and psycopg
                # believes them made: the query would fail for ever, as its statement "does not
                # exist" (tests/pg/test_connection.py, failed pipeline does not poison).
                self._prepared.clear()
                # A failed transaction takes no command; psycopg does this after its ROLLBACK.
                if self.pgconn.transaction_status != _INERROR:
                    await self.wait(self._prepared.maintain_gen(self))

    # -- the rest ------------------------------------------------------------------------

    async def notifies(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # psycopg's signature
        stop_after: int | None = None,
    ) -> AsyncGenerator[psycopg.Notify]:
        """Yield notifications as they arrive."""
        # psycopg's own polls, and by time.monotonic, of which a virtual clock knows nothing.
        deadline = float("inf") if timeout is None else trio.current_time() + timeout
        seen = 0
        while stop_after is None or seen < stop_after:
            async with self.lock:
                self._check_connection_ok()
                batch = await receive(self.pgconn, functools.partial(take_backlog, self), deadline)
            if not batch:
                return
            for notify in batch:
                yield notify
            seen += len(batch)
