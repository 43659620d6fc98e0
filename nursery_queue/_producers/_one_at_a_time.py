"""One call at a time on one connection, so that the savepoints of two do not mix."""

from __future__ import annotations

import weakref

from typing import TypeVar, cast


L = TypeVar("L")

_locks: weakref.WeakKeyDictionary[object, object] = weakref.WeakKeyDictionary()


def turn(connection: object, lock: L) -> L:
    """Return the lock of *connection*, whichever producer asks; at first that is *lock*."""
    return cast("L", _locks.setdefault(connection, lock))
