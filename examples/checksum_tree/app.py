"""What a task does: look into one file, and store what it found with its own completion."""

from __future__ import annotations

import hashlib
import os

from pathlib import Path

import attrs
import trio

import nursery_queue as nq


# The queue's tables get a schema of their own, apart from any that you have already.
SCHEMA = "checksum_tree"

# Nothing in it is unique: a file that is stored twice is to be seen, not to be prevented.
CREATE_TABLE = """
    create table checksum_tree.file (
        path   bytea  not null,
        sha256 text   not null,
        size   bigint not null,
        lines  bigint not null
    )
"""

app = nq.App()


@attrs.frozen
class Contents:
    """What we want to know of a file; the last line counts even if no newline ends it."""

    sha256: str
    size: int
    lines: int


@app.task(transactional=True)
async def checksum(ctx: nq.TaskContext, path: bytes) -> None:
    """Store the contents of the file at *path*: bytes, since a file name need not be text."""
    try:
        # Reading blocks, and a handler must not: in a thread, others run meanwhile.
        found = await trio.to_thread.run_sync(examine, path)
    except OSError as exc:
        raise nq.DoNotRetry(f"it cannot be read: {exc}") from exc
    # The first use of ctx.tx opens a transaction; the task is marked as done in the same one.
    # So there is a row if and only if the task has succeeded, and never a second row.
    await ctx.tx.execute(
        "insert into checksum_tree.file (path, sha256, size, lines) values (%s, %s, %s, %s)",
        [path, *attrs.astuple(found)],
    )


def examine(path: bytes) -> Contents:
    """Read a file piece by piece; there may be large ones."""
    digest, size, newlines, piece = hashlib.sha256(), 0, 0, b""
    with Path(os.fsdecode(path)).open("rb") as file:
        while more := file.read(1_000_000):
            piece = more
            digest.update(piece)
            size += len(piece)
            newlines += piece.count(b"\n")
    unended = bool(piece) and not piece.endswith(b"\n")
    return Contents(digest.hexdigest(), size, newlines + unended)
