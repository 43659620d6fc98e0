"""Params and results: Python values in and out of JSON text, by annotation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from nursery_queue._core._errors import ParamsError, ResultError
from nursery_queue._core._json_text import SCALARS, NotJsonError, object_from_text, to_text

from ._converter import CONVERTER, no_way, reasons
from ._scalars import Dump, Load, named


@attrs.frozen(eq=False)
class Params:
    """The parameters of one task type, prepared once so that each call is quick.

    Args:
        owner: The task type's name, for messages.
        hints: Each parameter's annotation, resolved. `Any` takes what JSON has.
        required: The parameters without a default.
        others: The annotation of parameters that are not in *hints*; None: there are none.

    Raises:
        ParamsError: An annotation that JSON cannot be converted to.
    """

    owner: str
    hints: Mapping[str, Any]
    required: frozenset[str] = frozenset()
    others: Any = None
    _dumps: dict[str, Dump] = attrs.field(init=False, factory=dict[str, Dump])
    _loads: dict[str, Load] = attrs.field(init=False, factory=dict[str, Load])
    # Where the type that JSON gave is the type that is wanted, there is nothing to do.
    _exact: dict[str, type] = attrs.field(init=False, factory=dict[str, type])
    _load_other: Load | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        for name, hint in self.hints.items():
            self._dumps[name], self._loads[name] = self._hooks(name, hint)
            if type(hint) is type and hint in SCALARS:
                self._exact[name] = hint
        if self.others is not None:
            _, load = self._hooks("**", self.others)
            object.__setattr__(self, "_load_other", load)

    def _hooks(self, name: str, hint: Any) -> tuple[Dump, Load]:
        try:
            return CONVERTER.get_unstructure_hook(hint), CONVERTER.get_structure_hook(hint)
        except Exception as error:  # building them evaluates users' annotations: any error
            raise ParamsError(f"{self.owner}: parameter {name}: {no_way(error, hint)}") from error

    @classmethod
    def of_unknown(cls, owner: str) -> Params:
        """Return the parameters of a task type whose code is not in this program: any will do."""
        return cls(owner, {}, others=Any)

    def dump(self, values: Mapping[str, Any]) -> str:
        """Return *values* as the text of a JSON object.

        Raises:
            ParamsError: One of them is not JSON, even after conversion: the message names it.
        """
        plain: dict[str, Any] = {}
        deep = False
        for name, value in values.items():
            if type(value) in SCALARS:
                plain[name] = value
            else:
                plain[name] = self._unstructure(name, value)
                deep = True
        # A name that is no string would silently become one.
        deep = deep or not all(type(name) is str for name in plain)
        try:
            return to_text(plain, "", deep=deep)
        except NotJsonError as error:
            raise ParamsError(f"{self.owner}: parameter {error}") from None

    def load(self, text: str) -> dict[str, Any]:
        """Return the values that *text* holds, each as its annotation says.

        Raises:
            ParamsError: Missing, unknown or ill-typed ones: the message names them, says
                the expected type and the value.
        """
        try:
            values = object_from_text(text)
        except NotJsonError as error:
            raise ParamsError(f"{self.owner}: params cannot be read: {error}") from None
        exact = self._exact
        for name, value in values.items():
            if exact.get(name) is not type(value):
                values[name] = self._structure(name, value)
        if not self.required <= values.keys():
            absent = self.required - values.keys()
            missing = ", ".join(name for name in self.hints if name in absent)
            raise ParamsError(f"{self.owner}: parameter {missing} is required, but missing")
        return values

    def _unstructure(self, name: str, value: Any) -> Any:
        try:
            return self._dumps.get(name, CONVERTER.unstructure)(value)
        except Exception as error:  # hooks run the attributes of values that are the user's
            wanted = named(self.hints.get(name, self.others))
            raise ParamsError(
                f"{self.owner}: parameter {reasons(error, name)}: "
                f"a {type(value).__qualname__} cannot be written as {wanted}"
            ) from error

    def _structure(self, name: str, value: Any) -> Any:
        load = self._loads.get(name, self._load_other)
        if load is None:
            known = ", ".join(self.hints) or "none"
            raise ParamsError(f"{self.owner}: there is no parameter {name!r}; there are: {known}")
        hint = self.hints.get(name, self.others)
        try:
            return load(value, hint)
        except Exception as error:  # hooks and users' own validators raise anything
            raise ParamsError(f"{self.owner}: parameter {reasons(error, name)}") from error


def dump_result(value: Any, hint: Any, owner: str) -> str | None:
    """Return the value that a handler returned as JSON text; None for None.

    Raises:
        ResultError: It is not JSON, even after conversion: the message says where.
    """
    # `-> None` says nothing about a value that came back all the same.
    hint = None if hint is type(None) else hint
    try:
        return _dump(value, hint, "result")
    except NotJsonError as error:
        msg = f"{owner}: {error}"
        raise ResultError(msg) from error.__cause__


def dump_context(value: Any) -> str | None:
    """Return the context of a completion task as JSON text; None for None.

    Raises:
        ParamsError: It is not JSON, even after conversion: the message says where.
    """
    try:
        return _dump(value, None, "context")
    except NotJsonError as error:
        raise ParamsError(str(error)) from error.__cause__


def _dump(value: Any, hint: Any, path: str) -> str | None:
    """Return *value* as JSON text, None for None; raise `NotJsonError` with the cause, if any."""
    if value is None:
        return None
    deep = type(value) not in SCALARS
    try:
        plain = CONVERTER.unstructure(value, hint) if deep else value
    except Exception as error:  # hooks run the attributes of values that are the user's
        why = reasons(error, path)
        msg = f"{why}: a {type(value).__qualname__} cannot be written as {named(hint)}"
        raise NotJsonError(msg) from error
    return to_text(plain, path, deep=deep)
