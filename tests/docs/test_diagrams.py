"""What the diagrams, CONTRIBUTING.md and docs/how-it-works.md name is there.

Names in text are those in code spans: files, classes with their members, functions with `()`,
tables and columns, and words of the code.
"""

from __future__ import annotations

import ast
import re

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from nursery_queue._core._states import TRANSITIONS, State
from nursery_queue._worker._attempt import EDGES
from tests.docs.pages import CONTRIBUTING, DOCS, ROOT, Block, blocks


PACKAGE = ROOT / "nursery_queue"
HOW_IT_WORKS = ROOT / "docs" / "how-it-works.md"
PYTHON = [
    ROOT / "noxfile.py",
    *PACKAGE.rglob("*.py"),
    *(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)),
]
SQL = sorted(PACKAGE.rglob("*.sql"))
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in [*PYTHON, *SQL])

CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w./-]*(?:\.(?:py|sql|md|toml)|/)")
MEMBER = re.compile(r"([A-Z]\w+)\.(\w+)")
CALL = re.compile(r"(\w+)\(\)")
WORD = re.compile(r"\w+")
EDGE = re.compile(r"^ +(\S+) --> (\S+): (.*)$", re.MULTILINE)

DIAGRAMS = [block for page in (CONTRIBUTING, *DOCS) for block in blocks(page, "mermaid")]
# Edges of the positions that are no change of state.
ASIDE = {
    ("[*]", "ready", "insert"),
    ("[*]", "scheduled", "insert"),
    ("ready", "parked", "park"),
    ("parked", "ready", "unpark"),
    ("parked", "finished", "cancel"),
    ("finished", "[*]", "prune"),
}


def classes() -> dict[str, set[str]]:
    """Return the members of each class of the package and its tests, with those of its bases."""
    own: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                own.setdefault(node.name, set()).update(members(node))
                bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]

    def inherited(name: str) -> set[str]:
        return own.get(name, set()).union(*(inherited(base) for base in bases.get(name, ())))

    return {name: inherited(name) for name in own}


def members(node: ast.ClassDef) -> Iterator[str]:
    for each in node.body:
        match each:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)]):
                yield name
            case _:
                pass


CLASSES = classes()


def is_file(name: str) -> bool:
    """Tell whether *name* is a path from the root or the package, or a file's name alone."""
    numbered = re.sub(r"^(.*/)?0009_name\.", r"\g<1>0001_tables.", name)  # an example
    paths = [ROOT / numbered, PACKAGE / numbered]
    if any(path.exists() for path in paths):
        return True
    return "/" not in numbered and any(path.name == numbered for path in [*PYTHON, *SQL])


def problem(name: str) -> str | None:
    """Say what is wrong with *name*; None: it is there, or nothing that has to be."""
    if FILE.fullmatch(name):
        return None if is_file(name) else "there is no such file"
    if match := MEMBER.fullmatch(name):
        known = match[2] in CLASSES.get(match[1], ())
        return None if known else "there is no such member of a class"
    if match := CALL.fullmatch(name):
        defined = rf"\b(def|function) (nursery_queue\.)?{match[1]}\("
        return None if re.search(defined, SOURCES) else "there is no such function"
    if WORD.fullmatch(name):
        return None if re.search(rf"\b{name}\b", SOURCES) else "the code has no such word"
    return None


def spans(text: str) -> list[str]:
    return SPAN.findall(CODE_BLOCK.sub("", text))


@pytest.mark.parametrize("page", [CONTRIBUTING, HOW_IT_WORKS], ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    """Every file, class, method, function and table in a code span of the page exists."""
    names = spans(page.read_text(encoding="utf-8"))

    assert len(names) > 30
    assert [f"{name}: {why}" for name in names if (why := problem(name))] == []


@pytest.mark.parametrize("diagram", DIAGRAMS, ids=str)
def test_what_a_diagram_names_is_there(diagram: Block) -> None:
    """Every file, method and function in a diagram exists."""
    tokens = re.findall(r"[\w/]+\.(?:py|sql)\b|\b[A-Z]\w+\.\w+|\w+\(\)", diagram.source)

    assert [f"{name}: {why}" for name in tokens if (why := problem(name))] == []


def the_diagram(kind: str, word: str = "") -> str:
    (found,) = (each.source for each in DIAGRAMS if re.match(rf"{kind}(?s:.*){word}", each.source))
    return found


def edges(diagram: str) -> set[tuple[str, str, str]]:
    """Return what leads from where to where in a diagram of states."""
    return {
        (source, target, event)
        for source, target, events in re.findall(
            r"^ +(\S+) --> (\S+): (.*)$", diagram, re.MULTILINE
        )
        for event in events.split(", ")
    }


def test_the_actors_of_the_sequence_are_classes() -> None:
    """Whom the way of a task leads past is a class, the database, or the user's program."""
    actors = re.findall(r"participant \w+ as (.*)", the_diagram("sequenceDiagram"))

    assert [each for each in actors if each not in CLASSES] == ["your program", "PostgreSQL"]


def test_the_diagram_of_tables(migrated: str) -> None:
    """Tables and columns of the diagram are those of the schema."""
    diagram = the_diagram("erDiagram")
    with psycopg.connect(migrated) as session:
        there = session.execute(
            "select table_name, column_name, data_type from information_schema.columns"
            " where table_schema = 'nursery_queue'"
        ).fetchall()
    columns = {(table, column) for table, column, _ in there}
    drawn = set(re.findall(r"^ +(\w+) [|}o]+--[|{o]+ (\w+)", diagram, re.MULTILINE))

    assert {table for pair in drawn for table in pair} <= {table for table, _ in columns}
    assert {"scheduled", "ready", "parked", "running", "finished"} <= {two for _, two in drawn}
    for table, body in re.findall(r"^ +(\w+) \{\n(.*?)\}", diagram, re.MULTILINE | re.DOTALL):
        for line in body.split("\n")[:-1]:
            _, column = line.split()
            assert (table, column) in columns


def test_the_diagram_of_positions() -> None:
    """The diagram has every transition of a task, between the tables it moves, and no other."""
    moves = {
        (table_of(source), table_of(target), str(event))
        for source, events in TRANSITIONS.items()
        for event, target in events.items()
    }
    assert edges(the_diagram("stateDiagram", "parked")) == moves | ASIDE


def table_of(state: State) -> str:
    return "finished" if state.is_final else str(state)


def test_the_diagram_of_an_attempt() -> None:
    """The diagram has every step of an attempt that leads into another phase, and no other."""
    steps = {
        (str(source), str(target), str(step))
        for step, phases in EDGES.items()
        for source, target in phases.items()
        if source is not target
    }

    assert edges(the_diagram("stateDiagram", "waiting")) == steps


def test_ten_files() -> None:
    """The way of one task leads through at most ten files, each of which is named."""
    rows = re.findall(r"^\| \d+ \| `(\S+)` \|", HOW_IT_WORKS.read_text(), re.MULTILINE)

    assert 8 <= len(rows) <= 10
    assert [row for row in rows if not (PACKAGE / row).is_file()] == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nursery_queue/_core/", True),
        ("_core/_states.py", True),
        ("_states.py", True),
        ("_state.py", False),
        ("claim.sql", True),
        ("tests/nowhere/", False),
        ("Client.enqueue", True),
        ("Client.pause", True),
        ("Client.inqueue", False),
        ("place()", True),
        ("plaice()", False),
        ("ready", True),
        ("reddy", False),
        ("python -m pytest", True),
    ],
)
def test_what_is_not_there_is_found(name: str, *, found: bool) -> None:
    """The look-up knows what exists from what does not."""
    assert (problem(name) is None) is found
