"""Shows how far the tasks are: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys

from collections.abc import Callable, Generator

import rich.progress
import trio

import nursery_queue as nq

from .fleet import remaining


async def show_progress(client: nq.Client, total: int) -> None:
    """Show it until all tasks have ended."""
    on_terminal = sys.stdout.isatty()
    with bar(total) if on_terminal else contextlib.nullcontext(print_line) as show:
        while left := remaining(await client.stats()):
            show(total - left, total)
            await trio.sleep(0.1 if on_terminal else 1.0)
        show(total, total)


@contextlib.contextmanager
def bar(total: int) -> Generator[Callable[[int, int], None]]:
    """Draw a bar; what is printed meanwhile appears above it."""
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns) as progress:
        line = progress.add_task("files", total=total)
        yield lambda done, _: progress.update(line, completed=done)


def print_line(done: int, total: int) -> None:
    """Print one line, at once."""
    print(f"{done:>8} of {total} done", flush=True)
