"""Makes the calls that were to be made once a SQLAlchemy session has committed.

Calls wait with the transaction, or the savepoint, that was the innermost when they came. A
savepoint that is released hands them on to what is around it; what is rolled back takes them
with it.
"""

from __future__ import annotations

import functools

from weakref import WeakKeyDictionary

import attrs

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only

from ._call import Call, call_all


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
    elif waiting.on_asyncio:
        await_only(call_all(waiting.calls))
    else:
        for call in waiting.calls:
            call.here()
