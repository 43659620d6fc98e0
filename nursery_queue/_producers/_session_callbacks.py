"""Makes calls once a SQLAlchemy session has committed.

A call belongs to the transaction, or the savepoint, that was the innermost when it was added. A
savepoint that is released passes its calls on to the transaction around it; a rollback drops
them. A session that is part of a transaction of its connection, as in tests that roll all back,
commits nothing by its commit(), and SQLAlchemy tells of a connection's commit only before it:
calls are dropped there, and a warning says so.
"""

from __future__ import annotations

import functools
import logging

from weakref import WeakKeyDictionary

import attrs

from sqlalchemy import Connection, event
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only

from ._committed_call import CommittedCall, call_all


log = logging.getLogger("nursery_queue")


@attrs.define(eq=False)
class PendingCalls:
    """The calls of a transaction or a savepoint, to be made when that has ended well."""

    calls: list[CommittedCall] = attrs.field(factory=list[CommittedCall])
    on_asyncio: bool = False
    ended_well: bool = False


_pending: WeakKeyDictionary[SessionTransaction, PendingCalls] = WeakKeyDictionary()


def add(session: Session, call: CommittedCall, *, on_asyncio: bool) -> None:
    """Make *call* once *session* has committed; *on_asyncio*: an `AsyncSession` has it."""
    _listen()
    pending = _of(_innermost(session) or session.begin())
    pending.calls.append(call)
    pending.on_asyncio |= on_asyncio


@functools.cache
def _listen() -> None:
    # To all sessions, for ever: within its own event a session does not let go of a listener.
    event.listen(Session, "after_commit", _after_commit)
    event.listen(Session, "after_transaction_end", _after_end)


def _of(transaction: SessionTransaction) -> PendingCalls:
    return _pending.setdefault(transaction, PendingCalls())


def _innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _after_commit(session: Session) -> None:
    # Of a savepoint, too: whichever it is, it is still the innermost.
    transaction = _innermost(session)
    if transaction is not None and transaction in _pending:
        _pending[transaction].ended_well = True


def _after_end(session: Session, transaction: SessionTransaction) -> None:
    pending = _pending.pop(transaction, None)
    if pending is None or not pending.ended_well:
        return
    if (around := _innermost(session)) is not None:
        outer = _of(around)
        outer.calls += pending.calls
        outer.on_asyncio |= pending.on_asyncio
    elif _is_part_of_another(session):
        count = len(pending.calls)
        log.warning(_DROPPED, count, *(("s", "are") if count > 1 else ("", "is")))
    elif pending.on_asyncio:
        await_only(call_all(pending.calls))
    else:
        for call in pending.calls:
            call.here()


_DROPPED = (
    "%d function%s for after the commit of a session %s not called: the session is part of a"
    " transaction that was begun on its connection, so its commit() has committed nothing. Call"
    " them after the commit of the connection"
)


def _is_part_of_another(session: Session) -> bool:
    """Whether the connection that *session* was given is still in a transaction."""
    try:
        bind = session.get_bind()
    except UnboundExecutionError:  # it has one for each table, and no producer works there
        return False
    return isinstance(bind, Connection) and bind.in_transaction()
