"""A bar on the terminal for what takes a while."""

from __future__ import annotations

import contextlib

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from ._output import on_terminal, terminal


if TYPE_CHECKING:
    from rich.progress import TaskID


@contextlib.contextmanager
def progress_bar(*, bar: bool) -> Generator[Callable[[str, int, int], object]]:
    """Yield what is told of the progress: on a terminal, a bar."""
    if not bar or not on_terminal():
        yield lambda _what, _done, _total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # It is drawn seldom: that takes CPU from what is measured.
    shown = Progress(*columns, console=terminal(), transient=True, refresh_per_second=3)
    with shown:
        row: TaskID = shown.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            shown.update(row, description=what, completed=done, total=total)

        yield show
