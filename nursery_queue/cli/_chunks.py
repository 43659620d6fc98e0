"""How what a task writes to a stream is shown: lines, a progress bar, or JSON."""

from __future__ import annotations

import base64
import json
import math

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeGuard, cast

import attrs

from nursery_queue._core._model import TaskStatus

from ._failures import say
from ._output import flush, harmless, terminal, write, write_json


if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ChunkDisplay(Protocol):
    """Where chunks are shown as they come."""

    def chunk(self, index: int, data: Any) -> None:
        """Show what was written, at once."""
        ...

    def restarted(self) -> None:
        """Tell that what was shown so far counts no more."""
        ...

    def ended(self, task: TaskStatus) -> None:
        """Tell how the task ended."""
        ...


@attrs.frozen
class Lines:
    """One line for each chunk; what else there is to say goes to stderr.

    For a person, a chunk of several lines stays that; a program gets one line for each.
    """

    split: bool

    def chunk(self, index: int, data: Any) -> None:  # noqa: ARG002  # others need it
        """Write it as a line, or lines."""
        text = _as_text(data)
        for line in text.splitlines() or [""] if self.split else [text]:
            write(harmless(line))
        flush()

    def restarted(self) -> None:
        """Say so."""
        say("a new attempt has begun the stream anew: what came before counts no more")

    def ended(self, task: TaskStatus) -> None:
        """Say it in one sentence."""
        say(f"task {task.id} {task.state}" + (f": {harmless(task.error)}" if task.error else ""))


@attrs.frozen
class JsonLines:
    """One object for each chunk, and a last one for the task; its "kind" says which."""

    def chunk(self, index: int, data: Any) -> None:
        """Write it with its index; bytes in base 64."""
        if isinstance(data, bytes):
            content = {"base64": base64.b64encode(data).decode("ascii")}
        else:
            content = {"data": data}
        self._write({"kind": "chunk", "index": index} | content)

    def restarted(self) -> None:
        """Write an object with nothing else in it."""
        self._write({"kind": "restart"})

    def ended(self, task: TaskStatus) -> None:
        """Write its state, and its error if it has one."""
        self._write({"kind": "task", "id": task.id, "state": task.state, "error": task.error})

    @staticmethod
    def _write(value: Mapping[str, Any]) -> None:
        write_json(value)
        flush()


@attrs.define(eq=False)
class Bar:
    """On a terminal: a bar for chunks that are progress, which stays below lines for others."""

    _lines: Lines = attrs.field(factory=lambda: Lines(split=True), init=False)
    _bar: tuple[Progress, TaskID] | None = attrs.field(default=None, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def chunk(self, index: int, data: Any) -> None:
        """Move the bar, or write lines above it."""
        if (progress := Done.of(data)) is None:
            self._lines.chunk(index, data)
            return
        if self._bar is None:
            self._bar = _started_bar()
        bar, row = self._bar
        bar.update(row, completed=progress.done, total=progress.total, description=str(progress))

    def restarted(self) -> None:
        """Say so above the bar; the next chunk moves it."""
        self._lines.restarted()

    def ended(self, task: TaskStatus) -> None:
        """Leave the bar as it is, and say it below."""
        self.stop()
        self._lines.ended(task)

    def stop(self) -> None:
        """Leave the bar as it is, and give the terminal back; may be called again."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None


@attrs.frozen
class Done:
    """How much of something is done."""

    done: float
    total: float
    share: bool  # of 1, so there is nothing to count

    @classmethod
    def of(cls, data: object) -> Self | None:
        """Return what a chunk says of progress: {"done": 3, "total": 7}, or 0.43."""
        if _is_number(data) and 0 <= data <= 1:
            return cls(data, 1, share=True)
        if isinstance(data, dict):
            chunk = cast("dict[str, object]", data)
            done, total = chunk.get("done"), chunk.get("total")
            if _is_number(done) and _is_number(total) and total > 0:
                return cls(done, total, share=False)
        return None

    def __str__(self) -> str:
        return "" if self.share else f"{self.done:,}/{self.total:,}"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _started_bar() -> tuple[Progress, TaskID]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    # It draws in a thread, some times a second: chunks may come faster. What others print
    # meanwhile it puts above itself.
    bar = Progress(
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}", markup=False),
        console=terminal(),
    )
    bar.start()
    return bar, bar.add_task("")


def _as_text(data: object) -> str:
    match data:
        case str():
            return data
        case bytes():
            return data.decode(errors="backslashreplace")
        case _:
            return json.dumps(data, ensure_ascii=False)
