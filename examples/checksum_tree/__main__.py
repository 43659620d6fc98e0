"""Who asks for it: enqueue, kill a worker in the middle, wait, check."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
import sysconfig
import tempfile

from collections.abc import Generator, Sequence
from pathlib import Path

import psycopg
import trio

import nursery_queue as nq

from .app import CREATE_TABLE, SCHEMA, checksum
from .fleet import kill, remaining, start_worker, until
from .progress import show_progress
from .report import check


SKIPPED = {"__pycache__", "site-packages"}
INTERRUPTED = 130  # what shells call a program that was ended by Ctrl-C


async def demo(files: Sequence[Path], dsn: str, size: int) -> int:
    """Let *size* workers look into *files*, kill one of them, and check what comes out."""
    async with nq.connect(dsn, schema=SCHEMA) as client:
        async with trio.open_nursery() as nursery:
            workers = [await start_worker(nursery, client, dsn) for _ in range(size)]
            print(f"{size} workers, {len(files)} files", flush=True)
            start = trio.current_time()
            await client.enqueue_many([checksum.bind(os.fsencode(file)) for file in files])
            nursery.start_soon(show_progress, client, len(files))

            await until(client, lambda stats: remaining(stats) < len(files) * 2 / 3)
            victim = workers.pop()
            held = await kill(victim, client)
            print(f"killed worker {victim.pid}, which held {held} tasks", flush=True)
            workers.append(await start_worker(nursery, client, dsn))

            await until(client, lambda stats: remaining(stats) == 0)
            seconds = trio.current_time() - start
            for worker in workers:
                worker.terminate()
        report = await check(client, files)
    report.show(seconds)
    return report.exit_code


def main() -> int:
    """Return the exit code: 0 if all is as it should be, 1 if not, 2 for wrong arguments."""
    arguments = parse_arguments()
    # Ctrl-C as usual, also for programs in the background, for which shells switch it off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, interrupt)
    code = INTERRUPTED
    try:
        with database(arguments.dsn) as dsn:
            code = run(arguments.files, dsn, arguments.workers)
    except* KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    return code


def interrupt(*_: object) -> None:
    """Do as on Ctrl-C: what we have started must not outlive us."""
    signal.raise_signal(signal.SIGINT)


def run(files: Sequence[Path], dsn: str, size: int) -> int:
    """Prepare the database and run the demo."""
    try:
        prepare(dsn)
    except psycopg.Error as exc:
        print(f"the database cannot be used: {exc}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    return trio.run(demo, files, dsn, size)


def parse_arguments() -> argparse.Namespace:
    """Read the command line and find the files; exit with 2 if either is no good."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.checksum_tree",
        description="Store SHA-256, size and line count of every file of a directory, with one "
        "task for each, while a worker is killed. Then compare with the files.",
    )
    parser.add_argument(
        "directory",
        nargs="?",
        type=Path,
        default=Path(sysconfig.get_path("stdlib")),
        help=f"default: Python's standard library; without {' and '.join(sorted(SKIPPED))}",
    )
    parser.add_argument(
        "--dsn", help=f"whose schema {SCHEMA} is made anew; default: a throwaway server"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes, 2 by default")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1, not {arguments.workers}")
    if not arguments.directory.is_dir():
        parser.error(f"{str(arguments.directory)!r} is not a directory")
    arguments.files = find_files(arguments.directory.resolve())
    if not arguments.files:
        parser.error(f"there are no files in {str(arguments.directory)!r}: choose another one")
    return arguments


def find_files(directory: Path) -> list[Path]:
    """Return all regular files below *directory*, whether they can be read or not."""
    found: list[Path] = []
    for folder, subfolders, _ in os.walk(directory):
        subfolders[:] = set(subfolders) - SKIPPED
        with os.scandir(folder) as entries:
            found += [Path(entry) for entry in entries if entry.is_file(follow_symlinks=False)]
    return sorted(found)


@contextlib.contextmanager
def database(dsn: str | None) -> Generator[str]:
    """Use the database of *dsn*; None: one on a server that is gone when the block ends."""
    if dsn is not None:
        yield dsn
        return
    with tempfile.TemporaryDirectory() as path, nq.embedded(path) as server:
        yield server.dsn


def prepare(dsn: str) -> None:
    """Make the schema anew, with the tables of the queue and the one that is our own."""
    with psycopg.connect(dsn) as connection:
        connection.execute(f"drop schema if exists {SCHEMA} cascade")
    trio.run(functools.partial(nq.migrate, dsn, schema=SCHEMA))
    with psycopg.connect(dsn) as connection:
        connection.execute(CREATE_TABLE)


if __name__ == "__main__":
    sys.exit(main())
