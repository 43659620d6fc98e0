"""The parent's side of the processes of a run."""

from __future__ import annotations

import contextlib
import logging
import subprocess

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import attrs
import trio

from nursery_queue._connect._scratch import Scratch
from nursery_queue._core._errors import NurseryQueueError
from nursery_queue.cli._interpreter import python

from ._messages import Messages


log = logging.getLogger("nursery_queue")

START = 60.0  # seconds after which a process that is not ready is given up
PATIENCE = 5.0  # seconds to end by itself


class BenchFailed(NurseryQueueError):
    """There are no figures: a process failed, or the database says something else than it."""


@attrs.define(eq=False)
class Child:
    """A process that measures, or works, for us."""

    role: str
    pid: int
    _messages: Messages
    last_words: str | None = attrs.field(default=None, init=False)  # of what it has logged

    async def tell(self, what: str) -> None:
        """Let it begin ("go") or end ("stop") what it is to do."""
        await self.send(do=what)

    async def send(self, **message: Any) -> None:
        """Send a message; if the process has ended, what it says of that is still to be heard."""
        with contextlib.suppress(trio.BrokenResourceError):
            await self._messages.send(**message)

    async def hear(self, kind: str) -> Any:
        """Wait until it says something of this kind; raises `BenchFailed` if it fails.

        What it logs meanwhile is logged here.
        """
        while (message := await self._messages.receive()) is not None:
            if "log" in message:
                self.last_words = message["log"]
                log.log(message["level"], "%s", message["log"])
            if "error" in message:
                raise BenchFailed(f"the process that is to {self.role} failed: {message['error']}")
            if kind in message:
                return message[kind]
        raise BenchFailed(f"the process that is to {self.role} has ended, and does not say why")


@contextlib.asynccontextmanager
async def child(role: str, place: Scratch, **job: Any) -> AsyncGenerator[Child]:
    """Start a process of ours, which is ready when the block begins, and has ended after it."""
    command = [*python(), "-m", "nursery_queue.cli._measuring._child"]
    async with child_of(command, role, dsn=place.dsn, schema=place.schema, **job) as started:
        yield started


@contextlib.asynccontextmanager
async def child_of(
    command: Sequence[str], role: str, *, env: Mapping[str, str] | None = None, **job: Any
) -> AsyncGenerator[Child]:
    """Start *command*, which speaks as `_child.py` does; as `child` otherwise."""
    process = await trio.lowlevel.open_process(
        command,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,  # not the one that Ctrl-C on a terminal goes to: it ends with us
    )
    assert process.stdin is not None
    assert process.stdout is not None
    messages = Messages(process.stdout, process.stdin)
    started = Child(role.replace("_", " "), process.pid, messages)
    try:
        await started.send(role=role, **job)
        with trio.move_on_after(START) as starting:
            await started.hear("ready")
        if starting.cancelled_caught:
            raise BenchFailed(
                f"the process that is to {started.role} is not ready after {START:g} s"
                + (
                    f"; the last that it has to say: {started.last_words}"
                    if started.last_words
                    else ""
                )
            )
        yield started
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            with trio.move_on_after(PATIENCE):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await messages.aclose()
