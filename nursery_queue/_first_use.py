"""Public names that are imported when they are first used.

Few programs use them all: who enqueues has no use for the worker, and `--help` for none of it.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading

from collections.abc import Callable, Mapping


_later: list[Callable[[], None]] = []
# A process that is forked while another thread imports never gets the lock of that module, and its
# own first use would wait for good. So a fork waits for the import (tests/unit/test_imports.py).
_importing = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_importing.release,
    )


def import_on_first_use(package: str, rooms: Mapping[str, str]) -> None:
    """Give a package `__getattr__`, which imports a name by need, `__dir__` and `__all__`.

    They are not written in the package, since type checkers would take any name for one of it.
    A name that has been used is an attribute like any other. One thread imports at a time.

    Args:
        package: The name of the package, which is being imported.
        rooms: For each of its modules, the names that are public there.
    """
    module = sys.modules[package]
    room_of = {name: room for room, names in rooms.items() for name in names.split()}

    def get(name: str) -> object:
        if name not in room_of:
            msg = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(msg, name=name, obj=module)
        with _importing:
            found = getattr(importlib.import_module(room_of[name], package), name)
        setattr(module, name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(module), *room_of})

    def use_all() -> None:
        for name in room_of:
            getattr(module, name)

    vars(module).update(__all__=sorted(room_of), __getattr__=get, __dir__=names)
    _later.append(use_all)


def import_all() -> None:
    """Import now whatever was to be imported later, so that no handler's time limit pays for it.

    Only the first call takes time, some tens of milliseconds at most.
    """
    for use_all in _later:
        use_all()
