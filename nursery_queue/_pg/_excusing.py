"""Excuses for a handler that fails because of its transaction."""

from __future__ import annotations

import contextlib

from collections.abc import Generator

import attrs

from nursery_queue._core._excuses import Excuse, causes, excuse
from nursery_queue._psycopg._database_errors import is_conflict, is_transient


@attrs.define(eq=False)
class Excuses:
    """Marks errors that leave the block of a transaction, COMMIT included; raises them as ever.

    A conflict excuses the handler, also as the cause of another error. Once the attempt is being
    settled its handler has returned, so an error that passes with time excuses it as well.
    """

    settling: bool = False

    @contextlib.contextmanager
    def marking(self) -> Generator[None]:
        """Mark the error that leaves the block."""
        try:
            yield
        except BaseException as exc:
            for each in causes(exc):
                if is_conflict(each):
                    excuse(each, Excuse.CONFLICT)
            if self.settling and is_transient(exc) and not is_conflict(exc):
                excuse(exc, Excuse.NOT_SETTLED)
            raise
