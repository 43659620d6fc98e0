from __future__ import annotations

import ast

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[2] / "nursery_queue"
MODULES = sorted(PACKAGE.rglob("*.py"))
QUERIES = sorted((PACKAGE / "_pg" / "queries").rglob("*.sql"))
LONGEST_MODULE = 400
LONGEST_FUNCTION = 60


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def functions(module: Path) -> Iterator[tuple[str, int]]:
    """Name each function of *module* and count its lines, the docstring aside."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                assert docstring.end_lineno is not None
                lines -= docstring.end_lineno - docstring.lineno + 1
            yield f"{name(module)}:{node.lineno} {node.name}", lines


def only_gathers(module: Path) -> bool:
    """Whether *module* is an `__init__` that holds nothing but a docstring and imports."""
    allowed = ast.Import | ast.ImportFrom | ast.Assign | ast.Expr
    return module.name == "__init__.py" and all(
        isinstance(node, allowed) for node in ast.parse(module.read_text()).body
    )


def test_there_is_something_to_check() -> None:
    """The rules below look at the files of the package, and there are some."""
    assert len(MODULES) > 10
    assert QUERIES


def test_a_file_name_says_where_it_is() -> None:
    """No two modules have the same name, so that a name in a traceback or a talk is enough."""
    names = Counter(module.name for module in MODULES if module.name != "__init__.py")
    assert [found for found, count in names.items() if count > 1] == []


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_a_module_is_not_too_long(module: Path) -> None:
    """A module has at most 400 lines."""
    assert len(module.read_text().splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_a_function_is_not_too_long(module: Path) -> None:
    """A function has at most 60 lines, not counting its docstring."""
    assert [found for found in functions(module) if found[1] > LONGEST_FUNCTION] == []


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_annotations_are_not_evaluated(module: Path) -> None:
    """Every module that holds code postpones the evaluation of annotations."""
    assert "from __future__ import annotations" in module.read_text() or only_gathers(module)


@pytest.mark.parametrize("query", QUERIES, ids=name)
def test_a_query_says_what_it_does(query: Path) -> None:
    """Every query begins with a comment."""
    assert query.read_text().startswith("-- ")
