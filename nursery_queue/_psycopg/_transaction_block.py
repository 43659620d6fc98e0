"""Transaction blocks that tell the truth about COMMIT."""

from __future__ import annotations

import contextlib

from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

import psycopg
import trio

from psycopg import pq
from psycopg.errors import InFailedSqlTransaction

from nursery_queue._core._errors import CommitOutcomeUnknown

from ._database_errors import is_answer


if TYPE_CHECKING:
    from ._connection import Connection

_OK = pq.ConnStatus.OK
_IDLE, _INERROR = pq.TransactionStatus.IDLE, pq.TransactionStatus.INERROR


class TransactionBlock(psycopg.AsyncTransaction):
    """psycopg's block, with BEGIN, COMMIT and ROLLBACK shielded and bounded.

    Leaving it without an exception means committed (or, nested, released); leaving it by
    `Cancelled` or any other exception means rolled back, except `CommitOutcomeUnknown`.
    """

    _outermost = False

    async def __aenter__(self) -> Self:
        # The last moment at which giving up is free: from BEGIN on all is shielded.
        await trio.lowlevel.checkpoint_if_cancelled()
        self._outermost = self.pgconn.transaction_status == _IDLE
        with self._owner.finishing("BEGIN"):
            return await super().__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        if exc_type is not None or self.force_rollback:
            return await self._finish("ROLLBACK", exc_type, exc_val, exc_tb)
        try:
            # COMMIT of a failed transaction rolls back and reports success: a block that swallowed
            # the error would end as if it had committed (tests/pg/test_commit.py, failed
            # transaction).
            check_committable(self._owner)
        except InFailedSqlTransaction as failed:
            await self._finish("ROLLBACK", type(failed), failed, None)
            raise
        if not self._outermost:
            return await self._finish("RELEASE", None, None, None)
        with truthful_commit():
            return await self._finish("COMMIT", None, None, None)

    @property
    def _owner(self) -> Connection:
        return cast("Connection", self.connection)

    async def _finish(
        self,
        what: str,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        with self._owner.finishing(what):
            swallow = await super().__aexit__(exc_type, exc_val, exc_tb)
            # In a pipeline the COMMIT was only queued: without its answer the block could end as
            # committed while the server is still to refuse it.
            await self._owner.sync_pipeline()
        return swallow


def check_committable(conn: Connection) -> None:
    """Raise if COMMIT could not commit; psycopg and the server would keep quiet about it."""
    conn.notice_loss()
    if conn.pgconn.status != _OK:
        msg = "the connection was lost before COMMIT: nothing was committed"
        raise psycopg.OperationalError(msg)
    if conn.pgconn.transaction_status == _INERROR:
        raise InFailedSqlTransaction(
            "a statement of this transaction failed, so nothing was committed; put statements "
            "that may fail in a nested transaction()"
        )


@contextlib.contextmanager
def truthful_commit() -> Generator[None]:
    """Raise `CommitOutcomeUnknown` for a COMMIT the server did not answer."""
    # The server may have committed and died before its answer got through. Only an ERROR is an
    # answer; a retry after anything else might do the work twice (tests/pg/test_commit.py).
    try:
        yield
    except (psycopg.OperationalError, psycopg.InternalError) as exc:
        if is_answer(exc):
            raise
        raise CommitOutcomeUnknown(f"the connection was lost during COMMIT: {exc}") from exc
