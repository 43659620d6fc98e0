"""What the pages in docs/ show is executed, in the order in which it is read."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import shutil
import subprocess
import sys

from collections.abc import Generator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._states import TRANSITIONS
from tests.docs.pages import CONTRIBUTING, DOCS, README, ROOT, Block, blocks, name, passes, run
from tests.docs.reader import KINDS, Reader, printed_as_promised


QUICKSTART, SQL = ROOT / "docs" / "quickstart.md", ROOT / "docs" / "sql.md"
FRAMEWORKS = ROOT / "docs" / "frameworks.md"
LIMITS, WHY = ROOT / "docs" / "limits.md", ROOT / "docs" / "why.md"
AFTER_COMMIT, HOW_IT_WORKS = ROOT / "docs" / "after-commit.md", ROOT / "docs" / "how-it-works.md"
SIGNUPS = Path(__file__).with_name("signups.py")
INCLUDED = re.compile(r"^```\{(?:literal)?include\} (\S+)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
VAGUE = re.compile(r"\bwhom?ever\b|\b(?:some|any|every|no)body\b", re.IGNORECASE)
FENCE = re.compile(r"^```\w", re.MULTILINE)
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What the tests below do with each page: those that are followed are followed in everything.
# Other pages have no blocks of code.
DONE = {
    "quickstart": KINDS,
    "handlers": {"fragment"},  # test_readme.py runs these, and those of the next three pages
    "queues": {"fragment"},
    "limits": {"fragment", "sh", "sql", "text"},
    "schedules": {"fragment", "pytest"},
    "why": {"fragment", "sh", "sql", "text"},
    "production": {"fragment", "mermaid", "pytest"},
    "deduplication": {"pytest"},
    "streams": {"pytest"},
    "testing": {"pytest"},
    "asyncio": {"pytest"},
    "frameworks": {"file", "fragment", "parse"},
    "after-commit": {"fragment", "pytest"},
    "sql": KINDS,
    "how-it-works": KINDS,
    "performance": {"parse"},
}

every_page = pytest.mark.parametrize("page", DOCS, ids=name)


# -- nothing is left out ----------------------------------------------------------------------


def test_there_are_pages() -> None:
    """The tests below find the pages, and each but the index is in one table of contents."""
    listed: list[str] = []
    for page in DOCS:
        for entries in TOCTREE.findall(page.read_text(encoding="utf-8")):
            listed += [line for line in entries.splitlines() if line and line[0] != ":"]

    assert sorted(["index", *listed]) == sorted(map(name, DOCS))


@every_page
def test_every_block_is_executed(page: Path) -> None:
    """Each block is of a kind that a test of this page carries out; Python is never just shown."""
    found = blocks(page)

    assert len(found) == len(FENCE.findall(page.read_text(encoding="utf-8")))
    assert {block.kind for block in found} <= DONE.get(name(page), set())
    assert {block.language for block in found if block.kind == "parse"} <= {"sh"}


@pytest.mark.parametrize("page", [README, CONTRIBUTING, *DOCS], ids=lambda page: page.name)
def test_sentences_have_subjects(page: Path) -> None:
    """Prose says which worker, caller or program is meant; examples say anything."""
    prose = CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))

    assert VAGUE.findall(prose) == []


@pytest.mark.parametrize("page", [README, CONTRIBUTING, *DOCS], ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    """A link to a file, and a program that is shown, is there."""
    text = page.read_text(encoding="utf-8")
    targets = [*LINK.findall(text), *INCLUDED.findall(text)]

    assert [each for each in targets if not (page.parent / each).exists()] == []


@pytest.mark.parametrize(
    "block",
    [
        block
        for page in (README, CONTRIBUTING, *DOCS)
        for block in blocks(page)
        if block.language == "sh"
    ],
    ids=str,
)
def test_shell_commands_parse(block: Block, tmp_path: Path) -> None:
    """Bash understands every command line."""
    bash = shutil.which("bash")
    assert bash
    command = [bash, "-n", "-c", block.source]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


# -- pages are followed ------------------------------------------------------------------------


def nobody_works() -> None:
    raise AssertionError


def test_the_quickstart(tmp_path: Path) -> None:
    """A newcomer who does what it says sees what it shows."""
    Reader(tmp_path, "", nobody_works).follow(blocks(QUICKSTART))


@pytest.fixture
def role(dsn: str) -> Generator[None]:
    """Remove the role that the page makes: roles belong to all databases of a server."""
    yield
    with psycopg.connect(dsn) as session:
        if session.execute("select from pg_roles where rolname = 'signup_form'").fetchall():
            session.execute("drop owned by signup_form; drop role signup_form")


async def work(app: nq.App, dsn: str) -> None:
    async with nq.connect(dsn) as client:
        await nq.Worker(app, client).run_until_idle()


@pytest.mark.usefixtures("role")
def test_sql_for_everybody(dsn: str, tmp_path: Path) -> None:
    """The statements do in an empty database, one after the other, what the page says."""
    app = nq.App()
    reader = Reader(tmp_path, dsn, lambda: trio.run(work, app, dsn), {"app": app})
    reader.follow(blocks(SQL))

    with psycopg.connect(dsn) as session:
        emails = session.execute("select params ->> 'email' from nursery_queue.task order by id")
        assert emails.fetchall()[-1] == ("kim@example.org",)
        assert session.execute("select from usr where email = 'hal@example.org'").fetchall() == []


def test_how_it_works(migrated: str, tmp_path: Path) -> None:
    """What is inserted is found in the tables that the page names."""
    Reader(tmp_path, migrated, nobody_works).follow(blocks(HOW_IT_WORKS))


def test_how_it_works_names_every_table(migrated: str) -> None:
    """No table of the schema is left out, and none is named that is not there."""
    tables, _, _ = HOW_IT_WORKS.read_text(encoding="utf-8").partition("A position moves")
    lines = [line.split("|")[1] for line in tables.splitlines() if line.startswith("| `")]
    with psycopg.connect(migrated) as session:
        there = session.execute(
            "select tablename from pg_tables where schemaname = 'nursery_queue'"
        ).fetchall()

    named = {name for line in lines for name in re.findall(r"`(\w+)`", line)}
    assert named | {"task"} == {name for (name,) in there}  # that one has a paragraph of its own


def test_how_a_task_moves() -> None:
    """The page lists every transition there is, in their order, and no other."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| `(\w+)` \|$", HOW_IT_WORKS.read_text(), re.MULTILINE
    )

    assert rows == [
        (source, event, target)
        for source, events in TRANSITIONS.items()
        for event, target in events.items()
    ]


def test_every_framework(migrated: str, tmp_path: Path) -> None:
    """In every world the person and the mail are stored together, or neither of them."""
    (mail,) = blocks(FRAMEWORKS, "file")
    fragments = "\n\n".join(block.source for block in blocks(FRAMEWORKS, "fragment"))
    (tmp_path / "mail.py").write_text(mail.source, encoding="utf-8")
    (tmp_path / "page.py").write_text(fragments, encoding="utf-8")
    with psycopg.connect(migrated) as session:
        session.execute("create table usr (email text primary key)")

    said = run(sys.executable, str(SIGNUPS), migrated, cwd=tmp_path).splitlines()
    ids: list[int] = json.loads(said.pop())
    settings = {"DATABASE_URL": migrated, "NURSERY_QUEUE_LOG_LEVEL": "ERROR"}
    worker = (sys.executable, "-m", "nursery_queue", "worker", "mail:app", "--drain")
    run(*worker, cwd=tmp_path, **settings)
    with psycopg.connect(migrated) as session:
        users = [email for (email,) in session.execute("select email from usr order by email")]
        tasks = session.execute("select id, result from nursery_queue.task_status").fetchall()

    worlds = ["async-session", "asyncio", "django", "psycopg", "session"]
    assert users == [f"{world}@example.org" for world in worlds]
    assert {result for _, result in tasks} == {f"Welcome, {email}!" for email in users}
    assert sorted(number for number, _ in tasks) == sorted(ids[::2])  # not of those between
    assert sorted(said) == [
        f"{world}@example.org has signed up" for world in ("async-session", "django", "session")
    ]


def is_fragment(block: Block) -> bool:
    return block.kind == "fragment"


async def follow(page: Path, reader: Reader, names: dict[str, Any]) -> None:
    """Do what all blocks of a page say, in their order; fragments in the loop of the test."""
    for fragments, group in itertools.groupby(blocks(page), is_fragment):
        if not fragments:
            await trio.to_thread.run_sync(reader.follow, list(group))
            continue
        for block in group:
            if inspect.isawaitable(running := eval(block.code, names)):  # noqa: S307  # the point
                await running


async def test_why(migrated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each way of asking answers what the page shows, and the fragments say the same."""
    async with nq.connect(migrated) as client:
        await follow(WHY, Reader(tmp_path, migrated, nobody_works), {"client": client})

    assert capsys.readouterr().out.splitlines() == [
        "ready",
        "no_workers no worker is alive {'draining': 0}",
        "queue_paused queue mail is paused {'queue': 'mail'}",
        "[1]",
    ]


def test_all_reasons_are_explained() -> None:
    """The page has a row for each, in the order in which they are told."""
    rows = re.findall(r"^\| `(\w+)` \|", WHY.read_text(encoding="utf-8"), re.MULTILINE)

    assert rows == [*nq.ReasonCode]


async def test_limits(migrated: str, tmp_path: Path) -> None:
    """Each way of setting limits does what the page says, and what code declares is stored."""
    reader, app = Reader(tmp_path, migrated, nobody_works), nq.App()
    names: dict[str, Any] = {"nq": nq, "app": app}
    async with nq.connect(migrated) as client:
        await follow(LIMITS, reader, names | {"client": client})
        async with trio.open_nursery() as nursery:
            worker = nq.Worker(app, client)
            await nursery.start(worker.run)
            worker.stop()
        found = {queue.name: queue for queue in await client.queues()}

    assert list(found) == ["calls", "imports", "mail"]
    assert (found["mail"].max_running, found["imports"].notify) == (5, False)
    assert (found["imports"].rate, found["imports"].max_running_per_key) == (nq.Rate(10, 60), 1)


async def test_after_the_commit(migrated: str) -> None:
    """Others hear of what was committed, and of nothing else."""
    heard: list[str] = []

    async def send(text: str) -> None:
        heard.append(text)

    app = nq.App()
    async with nq.connect(migrated) as client:
        async with client.transaction() as tx:
            await tx.execute("create table usr (email text primary key)")
        names: dict[str, Any] = {
            "nq": nq,
            "trio": trio,
            "psycopg": psycopg,
            "app": app,
            "client": client,
        }
        names |= {"sockets": [send], "heard": heard}
        for block in blocks(AFTER_COMMIT, "fragment"):
            if inspect.isawaitable(running := eval(block.code, names)):  # noqa: S307  # the point
                await running
        imported = await client.enqueue("import_contacts")
        async with trio.open_nursery() as nursery:
            worker = nq.Worker(app, client)
            await nursery.start(worker.run)
            await client.result(imported)
            worker.stop()
        told = await client.list_tasks(task_type="send_welcome")

    assert heard == [
        "ann@example.org is here",
        "bob@example.org is here",
        "cas@example.org is here",
        "dan@example.org is here",
        "eve@example.org is here",
        "fay@example.org is here",
        "gil@example.org is here",
        "imported at attempt 3",
    ]
    assert [task.state for task in told] == [nq.State.SUCCEEDED]


@pytest.mark.parametrize(
    "block", [block for page in (CONTRIBUTING, *DOCS) for block in blocks(page, "pytest")], ids=str
)
def test_the_test_examples(block: Block, nursery_queue_server: str, tmp_path: Path) -> None:
    """The tests that the pages show pass under pytest."""
    passes(block, nursery_queue_server, tmp_path)


# -- the reader is not easily satisfied --------------------------------------------------------


@pytest.mark.parametrize(
    ("promised", "printed", "kept"),
    [
        ("1\n", "1\n", True),
        ("1\n", "2\n", False),
        (" x \n---\n 1\n\n", " x\n---\n 1\n", True),
        ("a\n...\nz\n", "a\nb\nc\nz\n", True),
        ("a\n...\nz\n", "a\nb\nc\n", False),
        ("a\n", "a\nb\n", False),
    ],
)
def test_what_is_printed_is_compared(promised: str, printed: str, *, kept: bool) -> None:
    """Only dots stand for anything; blank lines at the end do not count."""
    assert printed_as_promised(promised, printed) is kept


@pytest.mark.parametrize(
    ("kind", "source"),
    [("sh", "false"), ("sh", "echo oh >&2"), ("fails", "true"), ("parse", "if")],
)
def test_a_page_that_is_wrong(kind: str, source: str, tmp_path: Path) -> None:
    """What fails although the page does not say so, or the other way round, is found."""
    block = Block(kind=kind, language="sh", name=None, source=source, page=README, line=1)
    with pytest.raises(AssertionError):
        Reader(tmp_path, "", nobody_works).follow([block])
