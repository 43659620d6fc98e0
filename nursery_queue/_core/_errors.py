"""Every error that this package raises on purpose, and the answer that each asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._checks import duration


class NurseryQueueError(Exception):
    """Base of all errors raised on purpose by nursery_queue."""


class TransientError(NurseryQueueError):
    """Trying again later may help; the only kind of error the package itself retries.

    Raised for a database that is away, restarting, overloaded or in conflict. A wrong
    password or a missing table is not transient: waiting does not cure it.
    """


class ClaimLocked(TransientError):
    """Another transaction holds the position of a task for the moment; ask again."""

    __module__ = "nursery_queue"  # what users read in tracebacks


class NoConnection(TransientError):
    """No connection to the database could be had in time.

    All connections of the pool are in use, the server takes no more, or it cannot be reached.
    A handler that raises it uses up no attempt: its task is given back and starts again a few
    seconds later.
    """


class DatabaseRefused(NurseryQueueError):
    """The database refuses this to every caller, until its rights or tables are mended.

    Rights are missing, or tables are not what this code needs. A worker keeps its claims and its
    outcomes and tries again, ever more slowly; no task is blamed.
    """


class NotifyUnavailable(NurseryQueueError):
    """The store cannot ring, and waiting does not change that: rely on polling."""

    __module__ = "nursery_queue"  # what users read in tracebacks


class Closed(NurseryQueueError):
    """You used a client, pool, transaction or stream after it was closed."""


class TransactionEnded(NurseryQueueError):
    """You used a transaction after its block had ended; open a new one."""


class CommitOutcomeUnknown(NurseryQueueError):
    """The answer to a commit was lost: it may or may not have been made, so look first.

    Raised for a transaction whose connection died during COMMIT, and for a write outside of a
    transaction (an enqueue, a cancel, a pause ...) whose connection died, or was closed for want
    of an answer, after the write may have been sent. Nothing that depends on the commit has
    been run. An enqueue with a `dedup_key` may simply be repeated while its task is live.
    """


class StaleClaim(NurseryQueueError):
    """This attempt no longer holds its task: another worker may be running it.

    Raised before COMMIT, so the writes of the transaction are gone.
    """


class InvalidTransition(NurseryQueueError):
    """A task was asked to do something its state does not allow."""


class UnknownTaskType(NurseryQueueError):
    """This app has no task type of that name; the task itself stays where it is."""


class PayloadTooLarge(NurseryQueueError, ValueError):
    """Params, a context or a chunk of a stream are larger than may be; nothing was stored."""


class StreamFull(NurseryQueueError):
    """A stream would have more chunks than its `max_chunks`; nothing of this write was stored."""


class StreamRestarted(NurseryQueueError):
    """A new attempt has begun the stream anew: chunks read so far do not count; read from 0."""


class ParamsError(NurseryQueueError, ValueError):
    """Params cannot be written as JSON, or do not fit the handler that would get them."""


class ResultError(NurseryQueueError, ValueError):
    """A handler returned something that cannot be stored as JSON."""


class ResultTooLarge(ResultError, PayloadTooLarge):
    """A handler returned more than a result may have: store it elsewhere, return a reference."""


class SchemaError(NurseryQueueError):
    """The schema is missing, older or newer than this code needs, or its database not in UTF8."""


class TaskFailed(NurseryQueueError):
    """The task you asked the result of has failed for good."""


class TaskCancelled(NurseryQueueError):
    """The task you asked the result of was cancelled."""


class DoNotRetry(NurseryQueueError):
    """Raise it in a handler to fail the task now, also if attempts are left.

    Subclasses count, and so does one inside an `ExceptionGroup`.
    """


class TryLater(NurseryQueueError):
    """Base of the errors that a handler raises to be run again after *seconds*."""

    def __init__(self, seconds: float) -> None:
        self.seconds: float = duration(seconds, "seconds")
        super().__init__(f"run again in {self.seconds:g} s")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.seconds,), vars(self)


class RetryAfter(TryLater):
    """Raise it in a handler: this attempt failed, make the next one in *seconds*.

    Counts as an attempt: the last one allowed fails the task.
    """


class Snooze(TryLater):
    """Raise it in a handler: not now, run again in *seconds*. Not counted as an attempt."""


class UnknownTask(NurseryQueueError, LookupError):
    """There is no task of that id: it never existed, or has been pruned."""


class UnknownSchedule(NurseryQueueError, LookupError):
    """There is no schedule of that name: it was never stored, or has been deleted."""


def name_by_module(names: Mapping[str, object], module: str) -> None:
    """Have the errors among *names* called after *module*, which is where users find them.

    Not so other classes: annotations in them are text, and are looked up in their own module.
    """
    for each in names.values():
        if isinstance(each, type) and issubclass(each, BaseException):
            each.__module__ = module
