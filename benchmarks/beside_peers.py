"""Measure nursery_queue beside Graphile Worker, pg-boss, pgqueuer and procrastinate.

    python -m benchmarks.beside_peers setup HOME               # installs the peers there, once
    python -m benchmarks.beside_peers run HOME [--dsn DSN] [--only drain,latency] [--rounds 5]
    python -m benchmarks.beside_peers report FILE              # the table, again
    python -m benchmarks.beside_peers plot FILE                # docs/performance-*.svg

In the root of a clone. `setup` needs npm. `run` takes turns: in each round every library is
measured once, in another order than in the round before, each time in a database of its own, which
is dropped afterwards, also after Ctrl-C. Without a DSN it is a server of its own, durable, with
PostgreSQL's defaults. It appends objects of JSON, a line each, to FILE (--out), and prints the
table of all that FILE has. What --only names may be measured at different times: only rounds of
one run are compared with each other. peers/plan.py says what is measured with which settings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
import time

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import trio

import nursery_queue as nq

from benchmarks.peers import plots, report
from benchmarks.peers.measures import Place, Row
from benchmarks.peers.plan import PLAN, Measure
from benchmarks.peers.systems import ROOT, Entry, Home
from nursery_queue._connect._admin import DatabaseError, connected
from nursery_queue._core._error_text import one_line
from nursery_queue._core._errors import TransientError
from nursery_queue._core._exception_groups import leaves


PATIENCE = 600.0  # seconds for one measurement of one library
USAGE = 2
STOPPED = 130  # as a shell has it after Ctrl-C
SETTINGS = """
    select name, current_setting(name) from pg_settings
     where source not in ('default', 'override', 'client')
           and category ~ '^(Autovacuum|Query|Resource|Write-Ahead)'
        or name in ('autovacuum', 'fsync', 'full_page_writes', 'jit', 'max_wal_size',
                    'shared_buffers', 'synchronous_commit', 'wal_sync_method')
     order by name
"""


class Output:
    """The file that rows are appended to, each with the run that it is of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._run = time.strftime("%Y-%m-%dT%H:%M:%S")
        if path.exists() and not path.read_bytes().endswith(b"\n"):  # a run was killed
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def write(self, **row: Any) -> None:
        """Append one row; it is there from then on, whatever happens."""
        line = json.dumps({"run": self._run, "at": time.strftime("%H:%M:%S"), **row})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


async def machine(place: Place) -> Row:
    """Return what the figures depend on besides the code."""
    async with connected(place.dsn) as session:
        ((version,),) = await session.fetch(b"select version()")
        settings = await session.fetch(SETTINGS.encode())
    return {
        "what": "machine",
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "postgresql": version,
        "settings": dict(settings),
        "versions": await trio.to_thread.run_sync(place.home.versions),
    }


def order(measure: Measure, turn: int) -> Iterator[Entry]:
    """Yield the entries, each time beginning with another one."""
    turn %= len(measure.entries)
    yield from measure.entries[turn:]
    yield from measure.entries[:turn]


async def measure_all(place: Place, options: argparse.Namespace, output: Output) -> None:
    """Measure all in turns. One that fails is reported, and the others go on."""
    output.write(**await machine(place))
    for turn in range(options.rounds):
        for what in options.only:
            for entry in order(PLAN[what], turn):
                await measure_one(place, what, entry, options, turn, output)


async def measure_one(
    place: Place,
    what: str,
    entry: Entry,
    options: argparse.Namespace,
    turn: int,
    output: Output,
) -> None:
    """Measure one entry once, and write its rows."""
    measure = PLAN[what]
    tasks = max(10, round(measure.tasks * entry.share * options.scale))
    common = {
        "what": what,
        "system": entry.system.name,
        "settings": entry.settings,
        "round": turn + 1,
    }
    try:
        with trio.fail_after(PATIENCE):
            rows = await measure.run(place, entry, tasks)
    except Exception as exc:  # noqa: BLE001  # a peer may fail in any way
        rows = [{"error": "; ".join(f"{type(each).__name__}: {each}" for each in leaves(exc))}]
    for row in rows:
        told = {**common, **row}
        output.write(**told)
        print(f"round {turn + 1} of {options.rounds}: {report.one_line(told)}", file=sys.stderr)


async def run(place: Place, options: argparse.Namespace, output: Output) -> bool:
    """Measure until it is done or a signal comes; return whether it is done."""
    done = False
    async with trio.open_nursery() as nursery:

        async def stop(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                task_status.started()
                async for _ in signals:
                    nursery.cancel_scope.cancel("a signal came")

        await nursery.start(stop)
        await measure_all(place, options, output)
        done = True
        nursery.cancel_scope.cancel("measured")
    return done


@contextlib.contextmanager
def server(dsn: str | None) -> Generator[str]:
    """Yield the DSN of a server: the one that is named, or one of our own."""
    if dsn is not None:
        yield dsn
        return
    with tempfile.TemporaryDirectory() as folder, nq.embedded(folder) as own:
        yield own.dsn


def only(text: str) -> list[str]:
    """Return the measures that are named."""
    names = text.split(",")
    if unknown := set(names) - set(PLAN):
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))}: there are {', '.join(PLAN)}"
        )
    return names


def parsed() -> argparse.Namespace:
    """Return what the command line says."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("setup", "run"):
        command = commands.add_parser(name)
        command.add_argument("home", type=Path, help="the directory of the peers")
    command.add_argument("--dsn", help="a server whose role may create databases, and checkpoint")
    command.add_argument("--only", type=only, default=list(PLAN), help=",".join(PLAN))
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--scale", type=float, default=1.0, help="0.01: a hundredth of the tasks")
    command.add_argument("--out", type=Path, default=Path("beside_peers.jsonl"), metavar="FILE")
    for name in ("report", "plot"):
        commands.add_parser(name).add_argument("file", type=Path, metavar="FILE")
    return parser.parse_args()


def obey(options: argparse.Namespace) -> int:
    """Do what the command line says; return the exit code."""
    if options.command == "setup":
        Home(options.home.resolve()).install()
    elif options.command == "plot":
        for path in plots.draw(report.read(options.file), ROOT / "docs"):
            print(path)
    elif options.command == "report":
        print(report.tables(report.read(options.file)))
    else:
        home = Home(options.home.resolve())
        if not home.installed():
            print(f"Error: run `setup {options.home}` first", file=sys.stderr)
            return USAGE
        with server(options.dsn) as dsn:
            place = Place(dsn, home)
            if not trio.run(run, place, options, Output(options.out)):
                print("interrupted", file=sys.stderr)
                return STOPPED
        print(report.tables(report.read(options.out)))
    return 0


def main() -> int:
    """Do what the command line says; a file or a server that is not there is told in a line."""
    try:
        return obey(parsed())
    except* (OSError, DatabaseError, TransientError) as group:
        for exc in leaves(group):
            print(f"Error: {one_line(str(exc))}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
