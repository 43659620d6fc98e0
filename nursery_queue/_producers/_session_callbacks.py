"""Makes the calls that were to be made once a SQLAlchemy session has committed.

Calls wait with the transaction, or the savepoint, that was the innermost when they came. A
savepoint that is released hands them on to what is around it; what is rolled back takes them
with it. Where the session is part of a transaction of somebody's, as in tests that roll all back,
what the session calls its commit is none, and SQLAlchemy tells of a connection's commit only
before it: calls are dropped there, and a warning says so.
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

from ._committed_call import Call, call_all


log = logging.getLogger("nursery_queue")


@attrs.define(eq=False)
class Waiting:
    """What is to be done when a transaction or a savepoint has ended well."""

    calls: list[Call] = attrs.field(factory=list[Call])
    on_asyncio: bool = False
    ended_well: bool = False


_waiting: WeakKeyDictionary[SessionTransaction, Waiting] = WeakKeyDictionary()


def add(session: Session, call: Call, *, on_asyncio: bool) -> None:
    """Make *call* once *session* has committed; *on_asyncio*: it is that of an `AsyncSession`."""
    _listen()
    waiting = _of(_innermost(session) or session.begin())
    waiting.calls.append(call)
    waiting.on_asyncio |= on_asyncio


@functools.cache
def _listen() -> None:
    # To all sessions, for ever: within its own event a session does not let go of a listener.
    event.listen(Session, "after_commit", _after_commit)
    event.listen(Session, "after_transaction_end", _after_end)


def _of(transaction: SessionTransaction) -> Waiting:
    return _waiting.setdefault(transaction, Waiting())


def _innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _after_commit(session: Session) -> None:
    # Of a savepoint, too: whichever it is, it is still the innermost.
    transaction = _innermost(session)
    if transaction is not None and transaction in _waiting:
        _waiting[transaction].ended_well = True


def _after_end(session: Session, transaction: SessionTransaction) -> None:
    waiting = _waiting.pop(transaction, None)
    if waiting is None or not waiting.ended_well:
        return
    if (around := _innermost(session)) is not None:
        outer = _of(around)
        outer.calls += waiting.calls
        outer.on_asyncio |= waiting.on_asyncio
    elif _is_part_of_another(session):
        count = len(waiting.calls)
        log.warning(_DROPPED, count, *(("s", "are") if count > 1 else ("", "is")))
    elif waiting.on_asyncio:
        await_only(call_all(waiting.calls))
    else:
        for call in waiting.calls:
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
