"""An asyncio event loop that trio runs: asyncio's own loop, one turn whenever there is a cause.

The loop is `asyncio.SelectorEventLoop` with everything it has: any executor, subprocesses,
streams, signals. trio only does its waiting: for the selector, whose own descriptor becomes
readable when one of its files is ready, for the next timer, and for callbacks from trio code.
asyncio is not patched, so it does not matter what was imported first, and asyncio in the other
threads of the process is what it would be without us.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import importlib
import logging
import math
import selectors
import signal
import sys
import threading

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextvars import Context
from types import FrameType
from typing import Any, TypeVar, TypeVarTuple

import trio

from ._asyncio_owners import begun_here, handle_in, signals_here
from ._daemon_threads import DaemonThreads


log = logging.getLogger("nursery_queue")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_SHARED = "this asyncio loop is shared by all handlers of the worker, and ends with it"
CLOSING = 5.0  # seconds for what is left in a loop that is closed

# The true ones: a program may have imported trio-asyncio, which replaces those of `asyncio`.
_c_asyncio: Any = importlib.import_module("_asyncio")
_base: Any = asyncio.SelectorEventLoop  # with what typeshed leaves out
_run_context: Any = importlib.import_module("trio._core._run").GLOBAL_RUN_CONTEXT
try:
    _sniffed: Any = importlib.import_module("sniffio").thread_local
except ImportError:  # trio may one day do without it
    _sniffed = threading.local()


class _Poll(selectors.DefaultSelector):
    """A selector that never waits: trio does."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        del timeout
        return super().select(0)


class TrioHostedLoop(asyncio.SelectorEventLoop):
    """An asyncio loop that is run by `open_asyncio_loop`; its time is trio's."""

    # What asyncio.base_events.BaseEventLoop has, and typeshed leaves out. The tests of this
    # module fail on a Python where they have another meaning.
    _selector: selectors.DefaultSelector
    _asyncgens: Any
    _ready: Any
    _scheduled: list[Any]
    _timer_cancelled_count: int
    _thread_id: int | None
    _default_executor: Any

    def __init__(self) -> None:
        self._parked: trio.lowlevel.Task | None = None  # the host, while it waits
        self._now = trio.lowlevel.current_clock().current_time
        self._handlers_before: dict[int, Any] = {}
        self._running = trio.CancelScope(shield=True)
        self._calls: trio.Nursery | None = None
        super().__init__(_Poll())
        self._default_executor = DaemonThreads()

    # -- what asyncio calls -----------------------------------------------------------------

    def time(self) -> float:
        """Return the time on trio's clock, which a test may own."""
        return self._now()

    def _call_soon(self, *args: Any) -> asyncio.Handle:
        handle: asyncio.Handle = _base._call_soon(self, *args)
        if self._parked is not None:
            self._wake()
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Have *callback* called, from any thread. Wakes the host by asyncio's own pipe."""
        _base._check_closed(self)
        handle: asyncio.Handle = _base._call_soon(self, callback, args, context)
        _base._write_to_self(self)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Have *callback* called at an instant."""
        timer = super().call_at(when, callback, *args, context=context)
        if self._parked is not None:
            self._wake()  # for an earlier instant than the host waits for
        return timer

    def set_default_executor(self, executor: Any) -> None:
        """Have *executor* run what names none."""
        if isinstance(self._default_executor, DaemonThreads):
            self._default_executor.shutdown(wait=False)
        super().set_default_executor(executor)

    def _asyncgen_firstiter_hook(self, agen: AsyncGenerator[Any]) -> None:
        _base._asyncgen_firstiter_hook(self, agen)
        if (begun := begun_here.get()) is not None:
            begun.add(id(agen))

    def _asyncgen_finalizer_hook(self, agen: AsyncGenerator[Any]) -> None:
        """Have *agen* closed, in an empty context if it was found by a task of another context."""
        self._asyncgens.discard(agen)
        begun = begun_here.get()
        own = begun is None or id(agen) in begun
        if not self.is_closed():
            context = None if own else Context()
            self.call_soon_threadsafe(self.create_task, agen.aclose(), context=context)

    def stop(self) -> None:
        """Refuse: others use the loop as well."""
        raise RuntimeError(_SHARED)

    def set_task_factory(self, factory: Any) -> None:
        """Refuse it on the loop: by its factory the tasks of all are known."""
        self._refuse_inside()
        super().set_task_factory(factory)

    def set_exception_handler(self, handler: Any) -> None:
        """Refuse it on the loop: the errors of all are heard by its handler."""
        self._refuse_inside()
        super().set_exception_handler(handler)

    def _refuse_inside(self) -> None:
        if _c_asyncio._get_running_loop() is self:
            raise RuntimeError(_SHARED)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  # asyncio's
        """Refuse, for the same reason."""
        del timeout
        raise RuntimeError(_SHARED)

    def add_signal_handler(self, sig: int, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Have *callback* called at a signal. asyncio's own way takes trio's wake-up away."""

        def heard(_signum: int, _frame: FrameType | None) -> None:
            self.call_soon_threadsafe(callback, *args)

        self._handlers_before.setdefault(sig, signal.signal(sig, heard))
        if (here := signals_here.get()) is not None:
            here.add(sig)

    def remove_signal_handler(self, sig: int) -> bool:
        """Put back what was there before `add_signal_handler`."""
        if sig not in self._handlers_before:
            return False
        before = self._handlers_before.pop(sig)
        signal.signal(sig, signal.SIG_DFL if before is None else before)
        return True

    # -- for those in trio ------------------------------------------------------------------

    async def outcome_of(self, future: asyncio.Future[R]) -> R:
        """Wait for *future* in trio. Cancelled, cancel it once, and wait until it is done."""
        task = trio.lowlevel.current_task()
        cancel: Callable[[], object] | None = None

        def done(_: object) -> None:
            trio.lowlevel.reschedule(task)

        def abort(raise_cancel: Callable[[], object]) -> trio.lowlevel.Abort:
            nonlocal cancel
            cancel = raise_cancel
            future.cancel()
            return trio.lowlevel.Abort.FAILED

        future.add_done_callback(done)
        await trio.lowlevel.wait_task_rescheduled(abort)
        try:
            return future.result()
        except asyncio.CancelledError as exc:
            if cancel is None:
                raise
            try:
                cancel()
            except trio.Cancelled as ours:
                raise ours from exc
            raise

    # -- for those on asyncio ---------------------------------------------------------------

    async def call_trio(self, fn: Callable[..., Awaitable[R]], /, *args: Any, **kwargs: Any) -> R:
        """Await a function of trio on asyncio, in a trio task that ends before this does.

        Cancelled, it cancels the function. If that has taken effect all the same, its result is
        returned, and the caller hears of the cancellation at its next `await`.
        """
        assert self._calls is not None
        future: asyncio.Future[R] = self.create_future()
        scope = trio.CancelScope()
        self._calls.start_soon(_call, future, scope, functools.partial(fn, *args, **kwargs))
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as exc:
                cancelled = exc
                scope.cancel("cancelled on asyncio")
        if future.cancelled():
            raise cancelled or asyncio.CancelledError
        result = future.result()
        if cancelled is not None:
            self.cancel_later(cancelled)
        return result

    def cancel_later(self, cancelled: asyncio.CancelledError) -> None:
        """Let the current task hear of a cancellation at its next `await`, if there is one.

        Not if the task ends before, for its result would be lost, nor if who has cancelled it has
        taken that back, as `asyncio.timeout` does at its end.
        """
        task = asyncio.current_task()

        def cancel() -> None:
            if task is not None and not task.done() and task.cancelling():
                task.uncancel()  # counted once, or asyncio.timeout() takes it for another's
                task.cancel(*cancelled.args)

        self.call_soon(cancel)

    # -- how it is run ----------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _host(self) -> None:
        """Run whenever there is a callback or a timer is due, until cancelled."""
        while True:
            self._turn()
            if self._ready:
                await trio.lowlevel.checkpoint()
                continue
            with trio.CancelScope(deadline=self._next_timer()):
                self._parked = trio.lowlevel.current_task()
                try:
                    await trio.lowlevel.wait_task_rescheduled(self._unpark)
                finally:
                    self._parked = None

    @trio.lowlevel.enable_ki_protection
    async def _host_files(self) -> None:
        """Run whenever a file is ready or another thread has called, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._selector)
            self._turn()

    def _unpark(self, _: object) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        task, self._parked = self._parked, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _next_timer(self) -> float:
        """Return when the next timer is due. One that was cancelled moves no test's clock."""
        while self._scheduled and self._scheduled[0].cancelled():
            self._timer_cancelled_count -= 1
            heapq.heappop(self._scheduled)._scheduled = False
        return float(self._scheduled[0].when()) if self._scheduled else math.inf

    def _turn(self) -> None:
        """Call what is ready, and then, once, what that has made ready: many a task needs two."""
        with self._entered():
            for _ in range(2):
                try:
                    _base._run_once(self)
                except BaseException as exc:  # noqa: BLE001  # raised there if it is ours
                    self._escaped(exc)
                if not self._ready:
                    return

    @contextlib.contextmanager
    def _entered(self) -> Generator[None]:
        """Make this thread asyncio's, as far as anyone can see.

        There is no current trio task then: what awaits trio from here is told so by trio, before
        it has half begun to wait, on behalf of our host.
        """
        task = _run_context.task
        outer, sniffed = _c_asyncio._get_running_loop(), getattr(_sniffed, "name", None)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(
            firstiter=self._asyncgen_firstiter_hook, finalizer=self._asyncgen_finalizer_hook
        )
        _c_asyncio._set_running_loop(self)
        _sniffed.name = "asyncio"
        del _run_context.task
        try:
            yield
        finally:
            _run_context.task = task
            _sniffed.name = sniffed
            _c_asyncio._set_running_loop(outer)
            sys.set_asyncgen_hooks(*hooks)

    def _escaped(self, exc: BaseException) -> None:
        """Let nothing that a callback raises end the loop, for all its users."""
        handle = handle_in(exc.__traceback__)
        if handle is None:
            raise exc
        message = f"a callback raised {type(exc).__name__}"
        self.call_exception_handler({"message": message, "exception": exc, "handle": handle})

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Be the loop until `end`; kept running for those who clean up when all is cancelled."""
        self._thread_id = threading.get_ident()
        with self._running:
            async with trio.open_nursery() as self._calls:
                self._calls.start_soon(self._host_files, name="asyncio loop, files")
                task_status.started()
                await self._host()

    async def end(self) -> None:
        """Cancel what is left, give it `CLOSING` seconds, and leave `run`."""
        with trio.move_on_after(CLOSING, shield=True) as limit:
            await self.outcome_of(self.create_task(self._finish()))
        if limit.cancelled_caught:
            log.warning("asyncio tasks ignore their cancellation: the loop ends without them")
        self._running.cancel("the asyncio loop ends")

    async def _finish(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel("the loop ends")
        if left:
            await asyncio.wait(left)
        await self.shutdown_asyncgens()

    def closed(self) -> None:
        """Free everything."""
        for sig in list(self._handlers_before):
            self.remove_signal_handler(sig)
        self._thread_id = None
        self.close()


async def _call(
    future: asyncio.Future[R], scope: trio.CancelScope, call: Callable[[], Awaitable[R]]
) -> None:
    """Make a call and tell *future* what came of it."""
    try:
        with scope:
            future.set_result(await call())
    except Exception as exc:  # noqa: BLE001  # raised where it is awaited
        future.set_exception(exc)
    finally:
        if not future.done():
            future.cancel()


@contextlib.asynccontextmanager
async def open_asyncio_loop() -> AsyncGenerator[TrioHostedLoop]:
    """Run an asyncio loop while the block lasts.

    What is left in it when the block ends, such as tasks that no handler has started, is
    cancelled and has `CLOSING` seconds. The block is not to be left before all that wait in
    `outcome_of` have returned.
    """
    loop = TrioHostedLoop()
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as hosting:
            await hosting.start(loop.run, name="asyncio loop")
            try:
                yield loop
            except BaseException as exc:  # noqa: BLE001  # raised below: the nursery would make it a group
                error = exc
            await loop.end()
    finally:
        loop.closed()
    if error is not None:
        raise error
