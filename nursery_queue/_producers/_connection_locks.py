"""A lock for each connection: the savepoints of two calls must not mix."""

from __future__ import annotations

import weakref

from typing import TypeVar, cast


L = TypeVar("L")

_locks: weakref.WeakKeyDictionary[object, object] = weakref.WeakKeyDictionary()


def lock_of(connection: object, lock: L) -> L:
    """Return the lock of *connection*, the same to all producers; at first that is *lock*."""
    return cast("L", _locks.setdefault(connection, lock))
