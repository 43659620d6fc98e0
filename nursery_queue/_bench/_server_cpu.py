"""The CPU time of a PostgreSQL server that runs on this machine."""

from __future__ import annotations

import os

from pathlib import Path
from typing import Self

import attrs


_PROC = Path("/proc")


@attrs.frozen
class ServerCpu:
    """A server, by its first process, whose children all others are."""

    postmaster: int

    @classmethod
    def of_backend(cls, pid: int, database: str) -> Self | None:
        """Return the server of this backend; None: not on this machine, or not to be seen.

        Another machine's process ids may be ones of this machine, too: of other programs. A backend
        has the name of its database in its title.
        """
        try:
            title = (_PROC / str(pid) / "cmdline").read_text(encoding="utf-8", errors="replace")
            parent = int(_stat(pid)[1])
        except (OSError, ValueError):
            return None
        return cls(parent) if title.startswith("postgres") and database in title else None

    def seconds(self) -> float:
        """Return what all of its processes have used so far, those that have ended included."""
        ticks = 0
        for entry in _PROC.iterdir():
            if not entry.name.isdigit():
                continue
            try:
                stat = _stat(int(entry.name))
            except OSError:
                continue  # it has ended meanwhile
            if int(entry.name) == self.postmaster:
                ticks += sum(map(int, stat[11:15]))  # its own, and of children that have ended
            elif int(stat[1]) == self.postmaster:
                ticks += int(stat[11]) + int(stat[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on: what comes before may have blanks."""
    return (_PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
