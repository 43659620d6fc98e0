"""The function that a callable comes down to."""

from __future__ import annotations

import functools
import inspect

from typing import Any


def function_of(handler: Any) -> Any:
    """Return the function that a partial, method, wrapper or callable object runs."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    handler = inspect.unwrap(handler)
    if not inspect.isroutine(handler):
        handler = type(handler).__call__
    return getattr(handler, "__func__", handler)
