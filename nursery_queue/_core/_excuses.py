"""Excuses for a failed attempt: the task is given back, and the attempt does not count."""

from __future__ import annotations

import enum
import math

from collections.abc import Iterator

from ._exception_groups import connected, leaves


class Excuse(enum.Enum):
    """Why an attempt failed through no fault of its handler."""

    CONFLICT = enum.auto()  # a serialization failure or a deadlock, in a transaction of ours
    NO_CONNECTION = enum.auto()  # none could be had; the handler has to wait, however long
    NOT_SETTLED = enum.auto()  # it has returned, and ctx.tx could not be settled or committed

    @property
    def bound(self) -> float:
        """How many attempts of a task in a row one worker gives back; then one counts."""
        return 10 if self is Excuse.CONFLICT else math.inf


_MARK = "_nursery_queue_excuse"


def excuse(error: BaseException, why: Excuse) -> None:
    """Mark *error*: a handler that ends with it, or because of it, is to be excused."""
    setattr(error, _MARK, why)


def excused(error: BaseException) -> Excuse | None:
    """Return the excuse of an attempt that ended with *error*; None: it counts.

    In a group every error must be excused: one that is not would have failed the attempt
    without the others. An error is excused if it is marked or has come of one that is.
    """
    whys = [_excuse_of(leaf) for leaf in leaves(error)]
    return None if None in whys else whys[0]


def _excuse_of(error: BaseException) -> Excuse | None:
    whys = (_mark_of(each) for each in causes(error))
    return next((why for why in whys if isinstance(why, Excuse)), None)


def _mark_of(error: BaseException) -> object:
    try:
        return object.__getattribute__(error, _MARK)  # its class may do anything when asked
    except AttributeError:
        return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield *error*, the errors inside it, and the errors that these have come of."""
    return connected(error, hidden=False)
