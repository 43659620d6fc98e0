"""What it costs to store tasks as they are declared, in the server's CPU time.

    python benchmarks/declared.py [--tasks 50000] [--rounds 7]

Stores tasks by one INSERT and by COPY, with all columns said and with what is declared left out: of
one type, and of types that take turns. In turns with the same into a table without the trigger,
whose columns have plain defaults. Prints medians in microseconds a task. Linux only, as it reads
the server's CPU time in /proc.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import psycopg

from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from nursery_queue._pg._migrator import up_sync


DECLARED = """
    insert into nursery_queue.task_type (name, queue, priority, keep_for)
    select 'type' || i, 'mail', 1, 60 from generate_series(1, 500) as i;
    insert into nursery_queue.task_type (name, queue, priority, keep_for, key_parameter)
    values ('keyed', 'mail', 1, 60, 'customer_id')
"""
PLAIN = """
    drop trigger as_declared on nursery_queue.task;
    alter table nursery_queue.task alter queue set default 'default', alter priority set default 0,
          alter on_complete drop default, alter key drop default
"""
EMPTY = "truncate nursery_queue.task, nursery_queue.ready"
INSERT = "insert into nursery_queue.task (%s) select %s from generate_series(1, %d) as i"
SAID = (
    "task_type, params, queue, priority, key, on_complete",
    "'type1', '{}', 'default', 0, null, null",
)
LEFT = ("task_type, params", "'type1', '{}'")
TURNS = ("task_type, params", "'type' || i %% 2, '{}'")
KEYED = ("task_type, params", "'keyed', '{\"customer_id\": 17}'")
KEY_SAID = (SAID[0], "'keyed', '{\"customer_id\": 17}', 'default', 0, '17', null")
COPIES = {
    "copy, all said": (SAID[0], ["type1\t{}\tdefault\t0\t\\N\t\\N\n"]),
    "copy, left out": (LEFT[0], ["type1\t{}\n"]),
    "copy, left out, types in turns": (LEFT[0], ["type1\t{}\n", "type2\t{}\n"]),
    "copy, key said": (SAID[0], ['keyed\t{"customer_id": 17}\tdefault\t0\t17\t\\N\n']),
    "copy, key declared": (LEFT[0], ['keyed\t{"customer_id": 17}\n']),
}
INSERTS = {
    "insert, all said": SAID,
    "insert, left out": LEFT,
    "insert, left out, turns": TURNS,
    "insert, key said": KEY_SAID,
    "insert, key declared": KEYED,
}
TICKS = os.sysconf("SC_CLK_TCK")


class Table:
    """A session of its own in a database of its own."""

    def __init__(self, dsn: str, tasks: int) -> None:
        self.session = psycopg.connect(dsn, autocommit=True)
        self.tasks = tasks
        self.took: defaultdict[str, list[float]] = defaultdict(list)

    def measure(self) -> None:
        """Store tasks in every way, once."""
        for name, (columns, values) in INSERTS.items():
            before = self.emptied()
            statement = INSERT % (columns, values.replace("%%", "%"), self.tasks)
            self.session.execute(statement.encode())
            self.note(name, before)
        for name, (columns, rows) in COPIES.items():
            before = self.emptied()
            statement = f"copy nursery_queue.task ({columns}) from stdin"
            with self.session.cursor().copy(statement.encode()) as copy:
                copy.write("".join(rows) * (self.tasks // len(rows)))
            self.note(name, before)

    def emptied(self) -> float:
        """Begin anew, and return what was used until then."""
        self.session.execute(EMPTY)
        return self.cpu()

    def note(self, name: str, before: float) -> None:
        """Keep what a task has cost since *before*."""
        self.took[name].append((self.cpu() - before) / self.tasks * 1e6)

    def cpu(self) -> float:
        """Return the seconds of CPU that this session's process has used."""
        stat = Path(f"/proc/{self.session.info.backend_pid}/stat").read_text(encoding="ascii")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS


def medians(took: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each."""
    return {name: statistics.median(values) for name, values in took.items()}


def main() -> int:
    """Measure in turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, nq.embedded(folder) as server:
        tables: list[Table] = []
        for name in ("declared", "plain"):
            with psycopg.connect(server.dsn, autocommit=True) as admin:
                admin.execute(f"create database {name}".encode())
            dsn = make_conninfo(server.dsn, dbname=name)
            up_sync(dsn)
            tables.append(Table(dsn, options.tasks))
            tables[-1].session.execute(DECLARED if name == "declared" else PLAIN)
        for _ in range(options.rounds):
            for table in tables:
                table.measure()
        declared, plain = (medians(table.took) for table in tables)
        for table in tables:
            table.session.close()
    for name, took in declared.items():
        print(f"{name:32} {plain[name]:6.2f} -> {took:6.2f} us {took / plain[name] - 1:+7.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
