"""Did every task have its effect, and have it once? Asks the tables, and reads every file again."""

from __future__ import annotations

import hashlib
import os

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs
import trio

import nursery_queue as nq

from .app import Contents


@attrs.frozen(kw_only=True)
class Report:
    """The figures, and all that is not as it should be."""

    tasks: int
    attempts: int
    lost: int
    duplicates: int
    unreadable: int
    problems: Sequence[str]

    @property
    def exit_code(self) -> int:
        """0 if there is no problem, 1 if there is any."""
        return 1 if self.problems else 0

    def show(self, seconds: float) -> None:
        """Print it; *seconds* is how long the tasks took."""
        for problem in self.problems[:20]:
            print(f"WRONG: {problem}")
        verdict = f"problems: {len(self.problems)}" if self.problems else "every row is right"
        print(f"\nThe table compared with hashlib: {verdict}\n")
        print(f"tasks             {self.tasks:>8}")
        print(f"attempts          {self.attempts:>8}")
        print(f"lost attempts     {self.lost:>8}")
        print(f"duplicates        {self.duplicates:>8}")
        print(f"unreadable files  {self.unreadable:>8}")
        print(f"tasks per second  {self.tasks / seconds:>8.0f}  (in {seconds:.1f} s)")


async def check(client: nq.Client, files: Sequence[Path]) -> Report:
    """Compare what the tasks have stored with what is in *files*."""
    async with client.transaction() as tx:
        cursor = await tx.execute("select path, sha256, size, lines from checksum_tree.file")
        rows = await cursor.fetchall()
        cursor = await tx.execute("select state from checksum_tree.task_status")
        states = Counter(state for (state,) in await cursor.fetchall())
        cursor = await tx.execute("select outcome from checksum_tree.task_attempt")
        outcomes = Counter(outcome for (outcome,) in await cursor.fetchall())
    stored = {Path(os.fsdecode(path)): Contents(*contents) for path, *contents in rows}
    actual = await trio.to_thread.run_sync(read_all, files)
    unreadable = sum(contents is None for contents in actual.values())
    duplicates = len(rows) - len(stored)
    problems = list(differences(stored, actual))
    if duplicates:
        problems.append(f"rows that are there again: {duplicates}")
    if states != Counter(succeeded=len(files) - unreadable, failed=unreadable):
        problems.append(
            f"of {len(files)} tasks, with {unreadable} files that cannot be read: {dict(states)}"
        )
    return Report(
        tasks=states.total(),
        attempts=outcomes.total(),
        lost=outcomes["lost"],
        duplicates=duplicates,
        unreadable=unreadable,
        problems=problems,
    )


def differences(
    stored: Mapping[Path, Contents], actual: Mapping[Path, Contents | None]
) -> Iterable[str]:
    """Say where a row is missing, wrong, or too many. No row is right for an unreadable file."""
    for file in stored.keys() | actual.keys():
        if stored.get(file) != actual.get(file):
            # As repr: a file name may be anything.
            yield f"{str(file)!r}: stored {stored.get(file)}, should be {actual.get(file)}"


def read_all(files: Iterable[Path]) -> dict[Path, Contents | None]:
    """Do again what the tasks did, as directly as can be."""
    return {file: read(file) for file in files}


def read(file: Path) -> Contents | None:
    """Return what is in a file, None if it cannot be read."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    lines = data.count(b"\n") + (data[-1:] not in {b"", b"\n"})
    return Contents(hashlib.sha256(data).hexdigest(), len(data), lines)
