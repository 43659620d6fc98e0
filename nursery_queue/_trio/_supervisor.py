"""Keeps long-lived loops running, each for itself."""

from __future__ import annotations

import enum
import logging
import random

from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol, TypeVar

import attrs
import trio

from nursery_queue._core._error_text import one_line, refusal_of
from nursery_queue._core._errors import (
    CommitOutcomeUnknown,
    DatabaseRefused,
    NotifyUnavailable,
    TransientError,
)
from nursery_queue._core._exception_groups import leaves, unwrapped
from nursery_queue._core._retry import Backoff

from ._wakeup import Wakeup


log = logging.getLogger("nursery_queue")
T = TypeVar("T")

_OUTAGE = (TransientError, CommitOutcomeUnknown)


class Service(Protocol):
    """Something that runs until cancelled, and says when it is ready."""

    def __call__(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]: ...


class LoopState(enum.StrEnum):
    """How a supervised loop is doing."""

    STARTING = "starting"  # for the first time
    HEALTHY = "healthy"  # it has said that it is ready, and has not failed since
    BACKING_OFF = "backing_off"  # it has failed, and is started again after a while
    OFF = "off"  # it does not run, or never can


@attrs.define(eq=False)
class Loop:
    """What is known of one supervised service. Logs one line per change of state."""

    name: str
    state: LoopState = LoopState.OFF
    restarts: int = 0
    last_error: str | None = None
    _failures: int = attrs.field(default=0, init=False)  # in a row
    _healthy_since: float | None = attrs.field(default=None, init=False)
    _told: str | None = attrs.field(default=None, init=False)  # what the log says is wrong
    _bell: Wakeup = attrs.field(factory=Wakeup, init=False)

    def starting(self) -> None:
        """Note that it is supervised from now on."""
        self.state = LoopState.STARTING
        self._failures, self._healthy_since, self._told = 0, None, None
        self._bell = Wakeup()

    def started(self) -> bool:
        """Note that the service says it is ready; return whether that follows a failure."""
        back = self.state is LoopState.BACKING_OFF
        if self._told is not None:
            log.info("%s is back", self.name)
        self.state = LoopState.HEALTHY
        self._healthy_since, self._told = trio.current_time(), None
        self._bell = Wakeup()  # it has hurried
        return back

    def failed(self, error: BaseException) -> None:
        """Note that the service has ended, and why."""
        self.restarts += 1
        self.state = LoopState.BACKING_OFF
        # Not str(): that may fail, too.
        self.last_error = f"{type(error).__name__}: {refusal_of(error)}"
        self._tell(error, self.last_error)

    def unavailable(self, error: BaseException) -> None:
        """Note that the service can never be had, and why; who found that out has logged it."""
        self.state = LoopState.OFF
        self.last_error = str(error)

    def _tell(self, error: BaseException, text: str) -> None:
        """Log an error, unless it is more of the same."""
        causes = list(leaves(error))
        passing = all(isinstance(cause, _OUTAGE) for cause in causes)
        known = all(isinstance(cause, (*_OUTAGE, DatabaseRefused)) for cause in causes)
        trouble = "outage" if passing else "refusal" if known else text
        if trouble == self._told:
            return
        self._told = trouble
        text = one_line(text)
        if passing:
            log.warning("%s failed, restarting it: %s", self.name, text)
        elif known:
            log.error("%s failed, and will until it is mended: %s", self.name, text)
        else:
            log.error("%s failed, which is a bug; restarting it", self.name, exc_info=error)

    async def pause(self, backoff: Backoff, rng: random.Random) -> None:
        """Wait before the next start, the longer the more often it has failed."""
        since, self._healthy_since = self._healthy_since, None
        if since is not None and trio.current_time() - since >= backoff.healthy_after:
            self._failures = 0
        self._failures += 1
        with trio.move_on_after(backoff.delay(self._failures, rng)):
            await self._bell.wait()

    def hurry(self, *, afresh: bool = False) -> None:
        """Cut the present wait short, or the next one if a start is under way; if well, nothing.

        With *afresh* the waits after that begin anew with short ones.
        """
        if self.state is not LoopState.HEALTHY:
            self._bell.ring()
            self._failures = 0 if afresh else self._failures


async def supervise(
    service: Service,
    loop: Loop,
    *,
    backoff: Backoff,
    rng: random.Random,
    on_back: Callable[[], None] = lambda: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Keep *service* running until cancelled; restart it whenever it fails, ever more slowly.

    A bug restarts it the same way, loudly: a loop that stays down would leave a worker
    that looks alive and does nothing. The waits start over once it has been healthy a while.
    After `NotifyUnavailable` it stays off: no restart would change that. *on_back* is called
    each time that it is ready again after a failure.
    """
    loop.starting()
    try:
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(service, name=loop.name)
                    if loop.started():
                        on_back()
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED  # only the first start is news
                loop.failed(RuntimeError("it returned"))
            except* NotifyUnavailable as group:
                loop.unavailable(unwrapped(group))
            except* Exception as group:  # noqa: BLE001  # whatever it is, the loop must go on
                loop.failed(unwrapped(group))
            if loop.state is LoopState.OFF:
                task_status.started()  # it will never be ready
                await trio.sleep_forever()
            await loop.pause(backoff, rng)
    finally:
        loop.state = LoopState.OFF


async def insist(
    call: Callable[[], Awaitable[T]], *, what: str, backoff: Backoff, rng: random.Random
) -> T:
    """Call until it stops raising `TransientError`. Bound it with a cancel scope."""
    failures = 0
    while True:
        try:
            result = await call()
        except TransientError as exc:
            failures += 1
            if failures == 1:
                log.warning("%s failed, trying again: %s", what, one_line(str(exc)))
        else:
            if failures:
                log.info("%s went through after %d failures", what, failures)
            return result
        await trio.sleep(backoff.delay(failures, rng))
