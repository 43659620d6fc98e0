"""What type checkers must see. Never executed; an error that is wanted is marked as one.

mypy runs with `warn_unused_ignores`, so a wrong call that is no longer an error is one.
"""

from __future__ import annotations

import datetime as dt

from typing import Any, ParamSpec, TypeVar, assert_type

import nursery_queue as nq

from nursery_queue._client._context import TaskContext
from nursery_queue._core._completion import Cancellation, Failure, Result, Success
from nursery_queue._declare._app import App
from nursery_queue._declare._task_type import TaskRequest, TaskType
from nursery_queue.testing import MemoryStore


P = ParamSpec("P")
R = TypeVar("R")

app = App()


@app.task
async def bare(path: str, width: int = 640) -> bytes:
    return b""


@app.task
async def bare_context(ctx: TaskContext, email: str) -> str:
    return ""


@app.task(queue="mail", timeout=dt.timedelta(seconds=3), retry=None)
async def configured(ctx: TaskContext, email: str, *, count: int = 1) -> int:
    return 1


@app.task(timeout=None, retry=False)
def sync(x: int) -> float:
    return 1.0


@app.task
def sync_context(ctx: TaskContext, x: int) -> float:
    return 1.0


@app.task
async def nothing() -> None: ...


# The context is no part of the call, and the result is what the coroutine returns.
assert_type(bare.bind("a", width=3), TaskRequest)
assert_type(bare_context.bind("a@b.c"), TaskRequest)
assert_type(configured.bind(email="a@b.c", count=2), TaskRequest)
assert_type(sync.bind(1), TaskRequest)
assert_type(sync_context.bind(1), TaskRequest)
assert_type(nothing.bind(), TaskRequest)


def result_of(task_type: TaskType[P, R]) -> R:
    raise NotImplementedError


assert_type(result_of(bare), bytes)
assert_type(result_of(bare_context), str)
assert_type(result_of(configured), int)
assert_type(result_of(sync), float)
assert_type(result_of(sync_context), float)
assert_type(result_of(nothing), None)

# Options keep the type.
chained = configured.options(run_after=60, priority=5).options(run_at=None, dedup_key="x")
assert_type(chained.bind("a@b.c"), TaskRequest)
assert_type(chained.bind("a@b.c").options(timeout=None, retry=False), TaskRequest)
assert_type(TaskRequest.by_name("x", {"a": 1}, queue="q"), TaskRequest)
assert_type(app["x"], TaskType[..., Any])
throttled = configured.options(key=7, dedup_key="x", dedup_for=60.0)
assert_type(throttled.options(key=None, debounce=nq.Debounce(1, max_wait=2)).bind("a"), TaskRequest)


# A key is the name of a parameter, or a function of them.
@app.task(key="x")
async def by_name(ctx: TaskContext, x: int) -> str:
    raise NotImplementedError


@app.task(key="{x}".format)
def by_function(x: int, y: int = 1) -> float:
    raise NotImplementedError


assert_type(result_of(by_name), str)
assert_type(result_of(by_function), float)


# Whom to tell is a task type of any kind, or a name; a context is anything.
@app.task
async def told(task_id: int, context: dict[str, int], result: Result) -> None: ...


@app.task(on_complete=told.options(priority=1))
async def tells(ctx: TaskContext, x: int) -> str:
    return ""


assert_type(result_of(tells), str)
assert_type(tells.options(on_complete=told, context={"a": 1}).bind(1), TaskRequest)
assert_type(tells.bind(1).options(on_complete="told", context=[None]), TaskRequest)
assert_type(tells.bind(1).options(on_complete=None, context=None), TaskRequest)
assert_type(TaskRequest.by_name("x", on_complete=told, context=1.5), TaskRequest)
told.bind(1, {"a": 1}, Success([5]))
told.bind(1, {}, Failure("E: x", "E"))
told.bind(1, {}, Cancellation("why"))


def kinds(result: Result) -> str:
    match result:
        case Success(value):
            assert_type(value, Any)
            return str(value)
        case Failure(error, error_type):
            return error + error_type
        case Cancellation(reason):
            return reason


class Ears(nq.Instrument):
    def task_completed(self, event: nq.Completed) -> None:
        assert_type(event.status, nq.Outcome)
        assert_type(event.error, str | None)

    def report(self, event: nq.Report) -> None:
        assert_type(event.counters + nq.Counters(failed=1), nq.Counters)
        assert_type(event.counters.failure_rate, float)


nq.Client(MemoryStore(), instruments=[Ears(), nq.LogEvents()])

# Wrong calls are errors.
nq.Client(MemoryStore(), instruments=[Ears])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]  # a class
app.task(on_complete=5)(told.handler)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # no int
bare.options(on_complete=b"x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # no bytes
told.bind(1, {}, {"status": "succeeded"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # one of the three
bare.bind()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # path is missing
bare.bind(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # path is a str
bare.bind("a", height=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # no height
bare_context.bind(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # email is a str
bare_context.bind("a", "b")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # one too many
configured.bind("a", 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # keyword only
sync_context.bind("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # x is an int
bare.options(retries=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # no such option
bare.options(priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # an int
app.task(timeout="3")(bare.handler)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # no str
