from __future__ import annotations

import ast
import re

from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[2] / "nursery_queue"
MODULES = sorted(PACKAGE.rglob("*.py"))
QUERIES = sorted((PACKAGE / "_pg" / "queries").rglob("*.sql"))
LONGEST_MODULE = 400
LONGEST_FUNCTION = 60
WORKER = PACKAGE / "_worker"
MOST_CALLBACKS_OF_A_CLASS = 2
MOST_CALLBACKS = 5  # in the whole of the worker
# Metaphors that the field's words have replaced.
GONE = {
    *("hands", "crew", "stage", "tenancy", "books", "news"),
    *("seat", "gathering", "census", "duties", "fate"),
}


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


def words(text: str) -> set[str]:
    """Return the words of a name, in lower case: of `_see_theNews`, `see`, `the` and `news`."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)}


def names_in(module: Path) -> Iterator[str]:
    """Yield the names of *module* itself and of its classes and functions."""
    yield module.stem
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def mentions(node: ast.expr, named: Container[str]) -> bool:
    """Whether an annotation, or the value of an alias, has one of these names in it."""
    return any(isinstance(part, ast.Name) and part.id in named for part in ast.walk(node))


def names_of_callables() -> set[str]:
    """Return what a callback may be annotated with: `Callable`, its aliases and its protocols."""
    named = {"Callable"}
    for module in MODULES:
        for node in ast.parse(module.read_text()).body:
            match node:
                case ast.Assign(targets=[ast.Name(id=alias)], value=ast.Subscript() as value):
                    if mentions(value, {"Callable"}):
                        named.add(alias)
                case ast.ClassDef(name=protocol, bases=[*_, ast.Name(id="Protocol")], body=body):
                    if any(isinstance(n, ast.FunctionDef) and n.name == "__call__" for n in body):
                        named.add(protocol)
                case _:
                    pass
    return named


def callbacks_of(owner: ast.ClassDef, named: Container[str]) -> Iterator[str]:
    """Yield the fields and the parameters of the constructor that are to be called back."""
    for node in owner.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=field), annotation=annotation):
                if mentions(annotation, named):
                    yield f"{owner.name}.{field}"
            case ast.FunctionDef(name="__init__", args=args):
                for each in args.args + args.kwonlyargs:
                    if each.annotation is not None and mentions(each.annotation, named):
                        yield f"{owner.name}({each.arg})"
            case _:
                pass


def callbacks() -> dict[str, list[str]]:
    """Return the callbacks of each class of the worker that has some."""
    named = names_of_callables()
    found = {
        f"{module.stem}.{node.name}": list(callbacks_of(node, named))
        for module in sorted(WORKER.glob("*.py"))
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    return {owner: fields for owner, fields in found.items() if fields}


def only_gathers(module: Path) -> bool:
    """Whether *module* is an `__init__` that holds nothing but a docstring and imports."""
    allowed = ast.Import | ast.ImportFrom | ast.Assign | ast.Expr
    body = list(ast.parse(module.read_text()).body)
    for node in body:  # also of what is for type checkers alone
        if isinstance(node, ast.If):
            body += node.body
    return module.name == "__init__.py" and all(isinstance(node, allowed | ast.If) for node in body)


def test_there_is_something_to_check() -> None:
    """The rules below look at the files of the package, and there are some."""
    assert len(MODULES) > 10
    assert QUERIES


def test_a_file_name_says_where_it_is() -> None:
    """No two modules have the same name, so that a name in a traceback or a talk is enough."""
    names = Counter(module.name for module in MODULES if module.name != "__init__.py")
    assert [found for found, count in names.items() if count > 1] == []


def test_names_are_the_fields() -> None:
    """No metaphor that was given up is in the name of a module, a class or a function."""
    found = {
        f"{name(module)}: {each}"
        for module in MODULES
        for each in names_in(module)
        if words(each) & GONE
    }

    assert found == set()


def test_words_of_names() -> None:
    """Names are taken apart at underscores and capitals."""
    assert words("_see_theNewsHTTPFirst2") == {"see", "the", "news", "http", "first"}


def test_loops_are_tied_by_few_callbacks() -> None:
    """A class of the worker has two callbacks at the most, and all of them together five.

    Else no loop can be read alone: they share objects that each of them names.
    """
    found = callbacks()

    assert {
        owner: each for owner, each in found.items() if len(each) > MOST_CALLBACKS_OF_A_CLASS
    } == {}
    assert sum(map(len, found.values())) <= MOST_CALLBACKS, found


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
