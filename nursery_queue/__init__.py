"""Background tasks in PostgreSQL, run with structured concurrency."""

# General layout, from the bottom up. A module may import what stands above it in this list
# and nothing below; import-linter holds that in CI.
#
#   _core       decisions: states, retry policy, what an outcome means, JSON. No I/O, no clock.
#   _runtime    trio idioms that know no tasks: supervise, insist, the doorbell.
#   _store      the boundary, and the in-memory side of it.
#   _pg         the PostgreSQL side: connection, pool, SQL, migrations.
#   _quiet_start  Ctrl-C while all of this is imported by the command line.
#   _app, _task_type                 what users declare; knows no database.
#   _context, _transaction, _stream_writer, _client  what handlers and applications call.
#   _engine, _worker                 the loops, one a file, and their nesting.
#   _connect, _producers, _embedded, testing, cli  the doors.
#
# Uses `from x import y as y` for `pyright --verifytypes`.
from . import _quiet_start as _quiet_start  # isort: skip  # first: it is about what follows
from ._app import App as App
from ._client import Client as Client
from ._connect import connect as connect, migrate as migrate
from ._context import CancelReason as CancelReason, TaskContext as TaskContext
from ._core import _errors as _errors
from ._core._completion import (
    Cancelled as Cancelled,
    Failed as Failed,
    Result as Result,
    Succeeded as Succeeded,
)
from ._core._counters import Counters as Counters
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
    UnknownTask as UnknownTask,
    UnknownTaskType as UnknownTaskType,
)
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
    Stranded as Stranded,
    TaskRef as TaskRef,
    TaskStatus as TaskStatus,
    WorkerStatus as WorkerStatus,
)
from ._core._options import Options as Options
from ._core._retry import RetryPolicy as RetryPolicy
from ._core._states import State as State
from ._embedded import Embedded as Embedded, embedded as embedded
from ._engine._exit_report import (
    ExitReport as ExitReport,
    Fate as Fate,
    TaskExit as TaskExit,
)
from ._engine._handlers import HandlerHealth as HandlerHealth
from ._engine._health import Health as Health, SiblingHealth as SiblingHealth
from ._producers import producer as producer
from ._producers._producer import AsyncProducer as AsyncProducer, Producer as Producer
from ._runtime._after_commit import (
    AfterCommit as AfterCommit,
    AfterCommitBatch as AfterCommitBatch,
    Drained as Drained,
)
from ._runtime._callbacks import CallbackCounts as CallbackCounts
from ._runtime._instruments import Instrument as Instrument, LogEvents as LogEvents
from ._runtime._log_level import log_level as _log_level
from ._store import Store as Store
from ._stream_writer import StreamWriter as StreamWriter
from ._streams import StreamInfo as StreamInfo, StreamReader as StreamReader
from ._task_type import TaskRequest as TaskRequest, TaskType as TaskType
from ._transaction import Transaction as Transaction
from ._worker import Worker as Worker


_log_level.obey()


# Also in tracebacks, and in what is stored of attempts.
_errors.name_by_module(globals(), __name__)
