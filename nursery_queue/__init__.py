"""Background tasks in PostgreSQL, run with structured concurrency."""

# The rooms, from the top down. A room imports those below it and none above or beside it, which
# import-linter holds (pyproject.toml).
#
#   cli, testing                       the command line; virtual time, MemoryStore, pytest fixtures
#   _connect, _embedded, _producers    the one place that picks a store; a server out of a wheel;
#                                      enqueuing on other libraries' connections
#   _worker       the worker: lease, settling, handlers, claiming, one loop a file
#   _client       what applications and handlers call: client, transaction, context, streams
#   _declare      what users declare: App, TaskType, options. Knows no database
#   _pg, _memory  PostgresStore: statements, rows, migrations; MemoryStore
#   _store        the protocol of both, and nothing else
#   _psycopg      psycopg on trio: connection, pool, listener. Knows no tasks
#   _trio, _json  trio idioms that know no tasks; Python values <-> JSON by annotation
#   _core         decisions: states, models, what an outcome means, retry, rates. No I/O, no clock
#   _quiet_start, _first_use           Ctrl-C while the command line is being imported; public
#                                      names that are imported when they are first used
#
# Errors are imported at once, as they are used when something has failed already. All other
# names are imported when they are first used, and when a worker is made, those that are left.
# A name stands here twice, for type checkers and for Python; tests/unit/test_imports.py compares.
# Uses `from x import y as y` for `pyright --verifytypes`.
from . import _quiet_start as _quiet_start  # isort: skip  # first: it is about what follows
from typing import TYPE_CHECKING as _TYPE_CHECKING

from ._core import _errors as _errors
from ._core._errors import (
    Closed as Closed,
    CommitOutcomeUnknown as CommitOutcomeUnknown,
    DatabaseRefused as DatabaseRefused,
    DoNotRetry as DoNotRetry,
    InvalidTransition as InvalidTransition,
    NoConnection as NoConnection,
    NurseryQueueError as NurseryQueueError,
    ParamsError as ParamsError,
    PayloadTooLarge as PayloadTooLarge,
    ResultError as ResultError,
    ResultTooLarge as ResultTooLarge,
    RetryAfter as RetryAfter,
    SchemaError as SchemaError,
    Snooze as Snooze,
    StaleClaim as StaleClaim,
    StreamFull as StreamFull,
    StreamRestarted as StreamRestarted,
    TaskCancelled as TaskCancelled,
    TaskFailed as TaskFailed,
    TransactionEnded as TransactionEnded,
    TransientError as TransientError,
    UnknownSchedule as UnknownSchedule,
    UnknownTask as UnknownTask,
    UnknownTaskType as UnknownTaskType,
)
from ._core._log_level import log_level as _log_level
from ._first_use import import_on_first_use as _import_on_first_use


if _TYPE_CHECKING:
    from ._client._after_commit import (
        AfterCommit as AfterCommit,
        AfterCommitBatch as AfterCommitBatch,
        Drained as Drained,
    )
    from ._client._callbacks import CallbackCounts as CallbackCounts
    from ._client._client import Client as Client
    from ._client._context import CancelReason as CancelReason, TaskContext as TaskContext
    from ._client._instruments import Instrument as Instrument, LogEvents as LogEvents
    from ._client._stream_reader import StreamInfo as StreamInfo, StreamReader as StreamReader
    from ._client._stream_writer import StreamWriter as StreamWriter
    from ._client._transaction import Transaction as Transaction
    from ._connect import connect as connect, migrate as migrate
    from ._core._completion import (
        Cancellation as Cancellation,
        Failure as Failure,
        Result as Result,
        Success as Success,
    )
    from ._core._counters import Counters as Counters
    from ._core._debounce import Debounce as Debounce
    from ._core._events import (
        Completed as Completed,
        Enqueued as Enqueued,
        Report as Report,
        Started as Started,
    )
    from ._core._model import (
        Attempt as Attempt,
        Fence as Fence,
        Outcome as Outcome,
        QueueStatus as QueueStatus,
        Stats as Stats,
        TaskRef as TaskRef,
        TaskStatus as TaskStatus,
        UnknownTypeStats as UnknownTypeStats,
        WorkerStatus as WorkerStatus,
    )
    from ._core._rate import Rate as Rate
    from ._core._reasons import Reason as Reason, ReasonCode as ReasonCode, Why as Why
    from ._core._retry import RetryPolicy as RetryPolicy
    from ._core._schedules import (
        Misfire as Misfire,
        Overlap as Overlap,
        ScheduleStatus as ScheduleStatus,
    )
    from ._core._states import State as State
    from ._core._when import Cron as Cron, Every as Every, preview as preview
    from ._declare._app import App as App
    from ._declare._options import Options as Options
    from ._declare._task_type import TaskRequest as TaskRequest, TaskType as TaskType
    from ._embedded import Embedded as Embedded, embedded as embedded
    from ._producers import producer as producer
    from ._producers._producer import AsyncProducer as AsyncProducer, Producer as Producer
    from ._store import Store as Store
    from ._trio._supervisor import LoopState as LoopState
    from ._worker._exit_report import (
        ExitOutcome as ExitOutcome,
        ExitReport as ExitReport,
        TaskExit as TaskExit,
    )
    from ._worker._handler_health import HandlerHealth as HandlerHealth
    from ._worker._health import Health as Health, LoopHealth as LoopHealth
    from ._worker._worker import Worker as Worker


_import_on_first_use(
    __name__,
    {
        "._client._after_commit": "AfterCommit AfterCommitBatch Drained",
        "._client._callbacks": "CallbackCounts",
        "._client._client": "Client",
        "._client._context": "CancelReason TaskContext",
        "._client._instruments": "Instrument LogEvents",
        "._client._stream_reader": "StreamInfo StreamReader",
        "._client._stream_writer": "StreamWriter",
        "._client._transaction": "Transaction",
        "._connect": "connect migrate",
        "._core._completion": "Cancellation Failure Result Success",
        "._core._counters": "Counters",
        "._core._debounce": "Debounce",
        "._core._errors": (
            "Closed CommitOutcomeUnknown DatabaseRefused DoNotRetry InvalidTransition "
            "NoConnection NurseryQueueError ParamsError PayloadTooLarge ResultError "
            "ResultTooLarge RetryAfter SchemaError Snooze StaleClaim StreamFull "
            "StreamRestarted TaskCancelled TaskFailed TransactionEnded TransientError "
            "UnknownSchedule UnknownTask UnknownTaskType"
        ),
        "._core._events": "Completed Enqueued Report Started",
        "._core._model": (
            "Attempt Fence Outcome QueueStatus Stats TaskRef TaskStatus UnknownTypeStats "
            "WorkerStatus"
        ),
        "._core._rate": "Rate",
        "._core._reasons": "Reason ReasonCode Why",
        "._core._retry": "RetryPolicy",
        "._core._schedules": "Misfire Overlap ScheduleStatus",
        "._core._states": "State",
        "._core._when": "Cron Every preview",
        "._declare._app": "App",
        "._declare._options": "Options",
        "._declare._task_type": "TaskRequest TaskType",
        "._embedded": "Embedded embedded",
        "._producers": "producer",
        "._producers._producer": "AsyncProducer Producer",
        "._store": "Store",
        "._trio._supervisor": "LoopState",
        "._worker._exit_report": "ExitOutcome ExitReport TaskExit",
        "._worker._handler_health": "HandlerHealth",
        "._worker._health": "Health LoopHealth",
        "._worker._worker": "Worker",
    },
)


_log_level.obey()


# Also in tracebacks, and in what is stored of attempts.
_errors.name_by_module(globals(), __name__)
