"""The libraries that are measured beside each other, and where the peers are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from nursery_queue.cli._measuring._round import LEFT


HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]

# What `setup` installs. The output has the versions that were there.
NPM: Final = {"graphile-worker": "0.17.3", "pg-boss": "12.35.0", "pg": "8.23.1", "node": "22.23.3"}
PIP: Final = {
    "pgqueuer": "1.6.0",
    "procrastinate": "3.10.0",
    "asyncpg": "0.32.0",
    "uvloop": "0.23.0",
    "psycopg[binary]": "3.3.9",
}


@attrs.frozen(kw_only=True)
class System:
    """A library, and what to ask of its tables."""

    name: str
    package: str  # as its registry has it
    adapter: str
    left: str  # whether there is anything left to do
    stored: str  # how many tasks there are
    done: str | None  # how many succeeded; None: it deletes them


OURS: Final = System(
    name="nursery_queue",
    package="nursery-queue",
    adapter="with_nursery_queue.py",
    left=LEFT,
    stored="select count(*) from nursery_queue.task",
    done="select count(*) from nursery_queue.attempt where outcome = 'succeeded'",
)
GRAPHILE: Final = System(
    name="Graphile Worker",
    package="graphile-worker",
    adapter="with_graphile_worker.js",
    left="select exists (select from graphile_worker._private_jobs)",
    stored="select count(*) from graphile_worker._private_jobs",
    done=None,
)
PG_BOSS: Final = System(
    name="pg-boss",
    package="pg-boss",
    adapter="with_pg_boss.js",
    left="select exists (select from pgboss.job where name = 'note' and state < 'completed')",
    stored="select count(*) from pgboss.job where name = 'note'",
    done="select count(*) from pgboss.job where name = 'note' and state = 'completed'",
)
PGQUEUER: Final = System(
    name="pgqueuer",
    package="pgqueuer",
    adapter="with_pgqueuer.py",
    left="select exists (select from pgqueuer)",
    stored="select count(*) from pgqueuer",
    done="select count(distinct job_id) from pgqueuer_log where status = 'successful'",
)
PROCRASTINATE: Final = System(
    name="procrastinate",
    package="procrastinate",
    adapter="with_procrastinate.py",
    left="select exists (select from procrastinate_jobs where status in ('todo', 'doing'))",
    stored="select count(*) from procrastinate_jobs",
    done="select count(*) from procrastinate_jobs where status = 'succeeded'",
)


@attrs.frozen
class Entry:
    """A library with its settings, as it is measured."""

    system: System
    settings: str  # for readers
    options: Mapping[str, Any]  # for its adapter
    share: float = 1.0  # of the tasks: a slow one would take minutes


@attrs.frozen
class Home:
    """The directory where the peers are installed."""

    path: Path

    @property
    def node(self) -> Path:
        """Node.js out of npm: pg-boss wants a newer one than many machines have."""
        return self.path / "node_modules" / "node" / "bin" / "node"

    @property
    def python(self) -> Path:
        """The peers' own Python."""
        return self.path / "venvs" / "py" / "bin" / "python"

    def command(self, system: System) -> list[str]:
        """Return the command of the adapter of *system*."""
        if system.adapter.endswith(".js"):
            return [str(self.node), str(HERE / system.adapter)]
        python = sys.executable if system is OURS else str(self.python)
        return [python, "-m", f"benchmarks.peers.{Path(system.adapter).stem}"]

    def environ(self) -> dict[str, str]:
        """Return the environment of adapters."""
        modules = str(self.path / "node_modules")
        return {**os.environ, "NODE_PATH": modules, "PYTHONPATH": str(ROOT)}

    def installed(self) -> bool:
        """Tell whether `setup` has come to its end here."""
        return self.node.exists() and self.python.exists()

    def install(self) -> None:
        """Install the peers, in the versions above."""
        self.path.mkdir(parents=True, exist_ok=True)
        package = {"name": "peers", "private": True, "dependencies": NPM}
        (self.path / "package.json").write_text(json.dumps(package, indent=2), encoding="utf-8")
        command = ["npm", "install", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=self.path, check=True)
        venv.create(self.path / "venvs" / "py", with_pip=True)
        pinned = [f"{name}=={version}" for name, version in PIP.items()]
        subprocess.run([self.python, "-m", "pip", "install", "--quiet", *pinned], check=True)

    def versions(self) -> dict[str, str]:
        """Return the versions that are there, ours and those of interpreters among them."""
        found = {OURS.package: _our_version(), "python": sys.version.split()[0]}
        for name in NPM:
            text = (self.path / "node_modules" / name / "package.json").read_text(encoding="utf-8")
            found[name] = json.loads(text)["version"]
        names = [name.partition("[")[0] for name in PIP]
        program = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
        asked = [str(self.python), "-c", program, *names]
        told = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
        return found | dict(zip(names, told.split(), strict=True))


def _our_version() -> str:
    """Return the version and the commit of this clone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = ["git", "describe", "--always", "--dirty"]
    told = subprocess.run(asked, cwd=ROOT, check=False, capture_output=True, text=True)
    return f"{project['version']} {told.stdout.strip()}".strip()
