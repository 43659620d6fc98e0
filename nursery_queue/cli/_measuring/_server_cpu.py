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
        return cls(parent) if title.startswith("postgres") and f" {database} " in title else None

    def seconds(self) -> float:
        """Return what all of its processes have used so far, those that have ended included."""
        while True:
            ended = self._of_ended()
            alive = sum(map(self._of_living, _PROC.iterdir()))
            # A process that ends between the two would be counted twice, or not at all.
            if self._of_ended() == ended:
                return (ended + alive) / os.sysconf("SC_CLK_TCK")

    def _of_ended(self) -> int:
        """Return the ticks of children that have ended."""
        return sum(map(int, _stat(self.postmaster)[13:15]))

    def _of_living(self, entry: Path) -> int:
        """Return the ticks of a process of the server; 0 for any other one."""
        if not entry.name.isdigit():
            return 0
        try:
            stat = _stat(int(entry.name))
        except OSError:
            return 0  # it has ended meanwhile
        ours = int(entry.name) == self.postmaster or int(stat[1]) == self.postmaster
        return int(stat[11]) + int(stat[12]) if ours else 0


def _stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on: what comes before may have blanks."""
    return (_PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
