"""A real PostgreSQL server out of a wheel, for development, demos and tests."""

from __future__ import annotations

from ._shared import Embedded, embedded, serve


__all__ = ["Embedded", "embedded", "serve"]
