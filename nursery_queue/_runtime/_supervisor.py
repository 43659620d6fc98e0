"""Keeps long-lived siblings running, each for itself."""

from __future__ import annotations

import enum
import logging
import random

from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol, TypeVar

import attrs
import trio

from nursery_queue._core._errors import TransientError
from nursery_queue._core._groups import leaves
from nursery_queue._core._retry import Backoff


log = logging.getLogger("nursery_queue")
T = TypeVar("T")


class Service(Protocol):
    """Something that runs until cancelled, and says when it is ready."""

    def __call__(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]: ...


class SiblingState(enum.StrEnum):
    """How a supervised sibling is doing."""

    STARTING = "starting"
    HEALTHY = "healthy"
    BACKING_OFF = "backing_off"
    OFF = "off"


@attrs.define(eq=False)
class Sibling:
    """What is known of one supervised service. Logs one line per change of state."""

    name: str
    state: SiblingState = SiblingState.OFF
    restarts: int = 0
    last_error: str | None = None

    def started(self) -> None:
        """Note that the service says it is ready."""
        if self.state is SiblingState.BACKING_OFF:
            log.info("%s is back", self.name)
        self.state = SiblingState.HEALTHY

    def failed(self, exc: BaseException, *, bug: bool) -> None:
        """Note that the service has ended, and why."""
        self.restarts += 1
        error = f"{type(exc).__name__}: {exc}"
        if bug:
            log.error("%s failed, which is a bug; restarting it", self.name, exc_info=exc)
        elif self.state is not SiblingState.BACKING_OFF:
            log.warning("%s failed, restarting it: %s", self.name, error)
        self.state = SiblingState.BACKING_OFF
        self.last_error = error


async def supervise(
    service: Service,
    sibling: Sibling,
    *,
    backoff: Backoff,
    rng: random.Random,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Keep *service* running until cancelled; restart it whenever it fails, ever more slowly.

    A bug restarts it the same way, loudly: a sibling that stays down would leave a worker
    that looks alive and does nothing. The waits start over once it has been healthy a while.
    """
    failures = 0
    sibling.state = SiblingState.STARTING
    try:
        while True:
            ready_at: float | None = None
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(service, name=sibling.name)
                    ready_at = trio.current_time()
                    sibling.started()
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED  # only the first start is news
                sibling.failed(RuntimeError("it returned"), bug=True)
            except* Exception as group:  # noqa: BLE001  # whatever it is, the sibling must go on
                cause = next(leaves(group))  # one is enough for a line in the log
                sibling.failed(cause, bug=not isinstance(cause, TransientError))
            lived = 0.0 if ready_at is None else trio.current_time() - ready_at
            failures = 1 if lived >= backoff.healthy_after else failures + 1
            await trio.sleep(backoff.delay(failures, rng))
    finally:
        sibling.state = SiblingState.OFF


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
                log.warning("%s failed, trying again: %s", what, exc)
        else:
            if failures:
                log.info("%s went through after %d failures", what, failures)
            return result
        await trio.sleep(backoff.delay(failures, rng))
