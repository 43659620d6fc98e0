"""Makes the reference out of the code: what Sphinx alone would not know of our classes.

* A class is defined in a private module and has a public name: links lead to the public name.
* A field of an attrs class, and a member of an enum, is described by the comment behind it.
* A context manager is shown as one, and not as the generator that it is made of.

Sphinx is not installed where types are checked, so the objects that it hands over are `Any`.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import textwrap
import types
import typing

from collections.abc import Callable, Iterator
from typing import Any

import attrs

import nursery_queue
import nursery_queue.testing


GENERATOR = re.compile(r"~?collections\.abc\.(Async)?Generator\[(.*)\]")
COLON = "\0"  # stands for a colon while napoleon looks

SPHINX = [importlib.import_module(f"sphinx.util.{name}") for name in ("typing", "inspect")]
_stringify: Callable[..., str] = SPHINX[0].stringify_annotation


def public_names() -> Iterator[tuple[str, object]]:
    """Yield everything that may be imported, with its public name."""
    for module in (nursery_queue, nursery_queue.testing):
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)


PUBLIC = {
    f"{found.__module__}.{found.__qualname__}": name
    for name, found in public_names()
    if isinstance(found, type | types.FunctionType)
}


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Link to the public name of what is named; what is not ours stays plain text."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    for name in (PUBLIC.get(target, target), f"nursery_queue.{target}"):
        found = env.domains.python_domain.resolve_xref(
            env, node["refdoc"], app.builder, "obj", name, node, content
        )
        if found is not None:
            return found
    return content


def comments(cls: type) -> Iterator[tuple[str, str | None, str]]:
    """Yield the public fields or members of *cls*: name, annotation, the comment behind it."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    annotation: str | None
    for node in body.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)):
                annotation = ast.unparse(node.annotation)
            case ast.Assign(targets=[ast.Name(id=name)]):
                annotation = None
            case _:
                continue
        if name[0] != "_":
            assert node.end_lineno is not None
            _, _, comment = lines[node.end_lineno - 1][node.end_col_offset :].partition("# ")
            yield name, annotation, comment


def fields(cls: type) -> Iterator[str]:
    """Describe the public fields of *cls*, as napoleon reads them.

    Those that have a comment behind them; and, where callers are not to make one, as a private
    field is needed for it, all of them, since they see no signature.
    """
    every = any(field.name[0] == "_" and field.init for field in attrs.fields(cls))
    for name, annotation, comment in comments(cls):
        if every:
            yield f"    {name} ({annotation}): {comment}"
        elif comment:
            yield f"    {name}: {comment}"


def members(enumeration: type[enum.Enum]) -> Iterator[str]:
    """Describe the members of *enumeration*, as napoleon reads them."""
    for name, _, comment in comments(enumeration):
        value = f"``{enumeration[name].value!r}``"
        yield f"    {name}: {value}: {comment}" if comment else f"    {name}: {value}"


def describe(
    _app: Any, what: str, _name: str, described: object, _options: Any, lines: list[str]
) -> None:
    """Add the comments behind fields and members, before napoleon reads what there is."""
    if what in {"attribute", "property"}:  # of these it takes what is before a colon for a type
        lines[:1] = [line.replace(":", COLON) for line in lines[:1]]
    elif inspect.isclass(described) and issubclass(described, enum.Enum):
        lines += ["", "Attributes:", *members(described), ""]
    elif isinstance(described, type) and attrs.has(described) and "Attributes:" not in lines:
        found = list(fields(described))
        lines += ["Attributes:", *found, ""] if found else []


def restore(
    _app: Any, _what: str, _name: str, _described: object, _options: Any, lines: list[str]
) -> None:
    """Put back the colons that `describe` has hidden."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def sign(
    _app: Any,
    _what: str,
    _name: str,
    described: Any,
    _options: Any,
    parameters: str | None,
    returned: str | None,
) -> tuple[str, str] | None:
    """Show context managers as such, no constructor of an enum, and factories as dots."""
    if inspect.isclass(described) and issubclass(described, enum.Enum):
        return "", ""
    if parameters is None:
        return None
    if hasattr(described, "__wrapped__") and returned:
        returned = GENERATOR.sub(r"~contextlib.Abstract\1ContextManager[\2]", returned)
    return parameters.replace("=NOTHING", "=..."), returned or ""


def stringify(annotation: Any, /, mode: Any = "fully-qualified-except-typing", **how: Any) -> str:
    """Write a ParamSpec as its name; as Sphinx has it, it cannot be read again."""
    if isinstance(annotation, typing.ParamSpec):
        return annotation.__name__
    if isinstance(annotation, typing.ParamSpecArgs):
        return f"{annotation.__origin__.__name__}.args"
    if isinstance(annotation, typing.ParamSpecKwargs):
        return f"{annotation.__origin__.__name__}.kwargs"
    return _stringify(annotation, mode, **how)


def setup(app: Any) -> None:
    """Connect all this; called by Sphinx."""
    for module in SPHINX:
        vars(module)["stringify_annotation"] = stringify
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", describe, priority=400)
    app.connect("autodoc-process-docstring", restore, priority=600)
    app.connect("autodoc-process-signature", sign)
