"""`tasks watch`: what a task writes, as it comes, and how the task ends."""

from __future__ import annotations

import contextlib
import math

from collections.abc import Generator

import attrs
import click
import trio

from nursery_queue._client._client import Client
from nursery_queue._client._stream_reader import FURTHEST, StreamInfo
from nursery_queue._core._errors import StreamRestarted, TransientError, UnknownTask
from nursery_queue._core._model import TaskStatus
from nursery_queue._core._states import State

from ._chunks import Bar, ChunkDisplay, JsonLines, Lines
from ._database import Database
from ._failures import CLEAN, PROBLEM, ProblemError, say
from ._output import on_terminal, terminal
from ._shared_options import BIGINT, database, json_lines
from ._status_watch import end_with_a_signal
from ._types import STREAM_NAME, integer


PAUSE = 1.0  # seconds between questions while the database is away


@click.command()
@click.argument("task_id", metavar="ID", type=integer(1, BIGINT))
@click.option("--stream", type=STREAM_NAME, default="default", show_default=True, help="Which.")
@click.option(
    "--start",
    type=integer(-FURTHEST, FURTHEST),
    default=0,
    show_default=True,
    metavar="N",
    help="Index of the first chunk; below 0 from the end.",
)
@database
@json_lines
def watch(database: Database, task_id: int, stream: str, start: int, as_json: bool) -> int:
    """Show what a task writes to a stream, as it comes, and how the task ends.

    A chunk a line. On a terminal, chunks such as {"done": 3, "total": 7} or 0.43 move a
    progress bar instead. With --json each object has a "kind": chunk, restart or task.

    Exits with 0 if the task has succeeded, otherwise with 1; also if it has not ended yet
    when you press Ctrl-C.
    """
    with _display(as_json=as_json) as display:
        watching = _Watching(task_id, stream, display, start)
        trio.run(watching.run, database)
        if watching.ended is not None:
            display.ended(watching.ended)
            return CLEAN if watching.ended.state is State.SUCCEEDED else PROBLEM
    say(f"the task has not ended: --start {watching.position} goes on from here")
    return PROBLEM


@contextlib.contextmanager
def _display(*, as_json: bool) -> Generator[ChunkDisplay]:
    if as_json:
        yield JsonLines()
    elif on_terminal() and not terminal().is_dumb_terminal:
        with Bar() as bar:
            yield bar
    else:
        yield Lines(split=on_terminal())


@attrs.define(eq=False)
class _Watching:
    """Reads to the end of a stream, and waits for the end of its task."""

    task_id: int
    name: str
    display: ChunkDisplay
    position: int  # index of the chunk that comes next
    ended: TaskStatus | None = attrs.field(default=None, init=False)
    _reading: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _length: float = attrs.field(default=math.inf, init=False)  # as far as we read

    async def run(self, database: Database) -> None:
        """Go on until both have ended, or until SIGINT or SIGTERM."""
        async with trio.open_nursery() as nursery:
            await nursery.start(end_with_a_signal, nursery.cancel_scope)
            async with database.client() as client:
                with database.explaining_errors():
                    task = await client.status(self.task_id)
                if task is None:
                    msg = f"there is no task {self.task_id}: it never existed, or has been pruned"
                    raise ProblemError(msg)
                await self._watch(client)
            nursery.cancel_scope.cancel("both have ended")

    async def _watch(self, client: Client) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait_for_the_task, client)
                with self._reading:
                    while await self._begun_anew(client):
                        self.display.restarted()
                        self.position = 0
        except* UnknownTask as exc:
            raise ProblemError(
                f"task {self.task_id} has ended and is not kept: how it ended, and what it"
                " wrote last, nobody can say"
            ) from exc

    async def _begun_anew(self, client: Client) -> bool:
        """Show what comes until the stream ends, or a new attempt begins it anew."""
        reader = client.read_stream(self.task_id, self.name, self.position)
        try:
            async for data in reader:
                self.position = reader.position
                self.display.chunk(self.position - 1, data)
                if self.position >= self._length:
                    break
        except StreamRestarted:
            return True
        return False

    async def _wait_for_the_task(self, client: Client) -> None:
        ended = await client.wait(self.task_id)
        # A handler may leave its stream open; it is written to no more all the same.
        info = await self._info(client)
        if info is None or not info.closed:
            self._length = 0 if info is None else info.length
            if max(self.position, 0) >= self._length:
                self._reading.cancel("nothing will come")
        self.ended = ended

    async def _info(self, client: Client) -> StreamInfo | None:
        while True:
            try:
                return await client.stream_info(self.task_id, self.name)
            except TransientError:
                await trio.sleep(PAUSE)
