"""What a handler takes and returns, read from its signature as soon as its annotations allow."""

from __future__ import annotations

import inspect
import re

from collections.abc import Callable, Collection, Mapping
from typing import Any, get_origin, get_type_hints

import attrs

from nursery_queue._core._callables import function_of
from nursery_queue._core._completion import PARAMETERS, AnyResult
from nursery_queue._core._errors import ParamsError
from nursery_queue._json._codec import Params


_KINDS = inspect.Parameter
_NOTHING = inspect.Parameter.empty
_ANYTHING = (Any, object)


class UnresolvedError(NameError):
    """An annotation names what cannot be found where the handler was defined."""

    __module__ = "nursery_queue"  # what users read in tracebacks


@attrs.frozen(kw_only=True)
class Resolved:
    """A signature whose annotations have been looked up."""

    takes_context: bool
    params: Params
    returns: Any
    call: inspect.Signature  # without the context
    positional_only: tuple[inspect.Parameter, ...]
    var_keyword: str | None
    plain: tuple[str, ...] | None  # the names, if each can be given by position; None: not so


@attrs.frozen(eq=False)
class Signature:
    """A handler's signature; annotations may name what is defined later in its module.

    Args:
        handler: The function, method, partial or callable object.
        owner: The task type's name, for messages.
        names: What the names in annotations mean where the handler was defined, beyond
            its module's globals.
    """

    handler: Callable[..., Any]
    owner: str
    names: Mapping[str, Any]
    _raw: inspect.Signature = attrs.field(init=False)
    _resolved: list[Resolved] = attrs.field(init=False, factory=list[Resolved])

    def __attrs_post_init__(self) -> None:
        try:
            raw = inspect.signature(self.handler)
        except ValueError as error:  # some builtins have none
            raise TypeError(f"cannot make {self.handler!r} a task: {error}") from None
        parameters = list(raw.parameters.values())
        for position, parameter in enumerate(parameters):
            if parameter.kind is _KINDS.VAR_POSITIONAL:
                raise TypeError(
                    f"{self.owner} takes *{parameter.name}, but params are a JSON object: "
                    f"give each parameter a name, or take a list"
                )
            if _looks_like_context(parameter.annotation) and self._is_context(parameter):
                _check_context(self.owner, parameter, position)
        object.__setattr__(self, "_raw", raw)

    def check(self) -> None:
        """Look the annotations up, unless they name what is not there yet: then at first use.

        Raises:
            TypeError: One that JSON does not convert to.
        """
        try:
            self.resolve()
        except ParamsError as error:
            if not isinstance(error.__cause__, NameError):
                raise TypeError(str(error)) from error.__cause__

    def resolve(self) -> Resolved:
        """Return the signature with its annotations looked up.

        Raises:
            ParamsError: An annotation that names nothing, or that JSON does not convert to.
        """
        if not self._resolved:
            self._resolved.append(self._resolve())
        return self._resolved[0]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by parameter name, the context left out.

        Raises:
            TypeError: They do not fit the signature.
        """
        resolved = self.resolve()
        if resolved.plain is not None and len(resolved.plain) == len(args) and not kwargs:
            return dict(zip(resolved.plain, args, strict=True))  # `bind` takes 1 us more
        try:
            values = resolved.call.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self.owner}() {_as_python_words_it(str(error))}") from None
        if resolved.var_keyword is not None:
            for name, value in values.pop(resolved.var_keyword, {}).items():
                if name in values:
                    raise TypeError(f"{self.owner}() got multiple values for argument {name!r}")
                values[name] = value
        return values

    def call(self, context: Any, values: dict[str, Any]) -> Any:
        """Call the handler with *values* by parameter name."""
        resolved = self.resolve()
        args = [context] if resolved.takes_context else []
        if resolved.positional_only:
            values = dict(values)
            given = [p.name in values for p in resolved.positional_only]
            wanted = len(given) - given[::-1].index(True) if True in given else 0
            first = resolved.positional_only[:wanted]
            args += [values.pop(parameter.name, parameter.default) for parameter in first]
        return self.handler(*args, **values)

    def parameter_names(self) -> tuple[list[str], bool]:
        """Return the names of the parameters, and whether there may be others."""
        named, rest = self._parameters()
        return [p.name for p in named], bool(rest)

    def defaults(self) -> dict[str, Any]:
        """Return the defaults of the parameters that have one, by name."""
        named, _ = self._parameters()
        return {p.name: p.default for p in named if p.default is not _NOTHING}

    def _parameters(self) -> tuple[list[inspect.Parameter], list[inspect.Parameter]]:
        """Return the parameters, the context left out, and the one that takes all others."""
        parameters = list(self._raw.parameters.values())
        if parameters and self._is_context(parameters[0]):
            parameters = parameters[1:]
        rest = [p for p in parameters if p.kind is _KINDS.VAR_KEYWORD]
        return [p for p in parameters if p.kind is not _KINDS.VAR_KEYWORD], rest

    def why_not(self, names: Collection[str]) -> str | None:
        """Say why the handler cannot be called with arguments of these names; None: it can."""
        parameters, rest = self._parameters()
        named = {p.name: p for p in parameters}
        missing = [name for name in names if not rest and name not in named]
        if missing:
            return f"takes no parameter {', '.join(missing)}"
        more = [p.name for p in named.values() if p.default is _NOTHING and p.name not in names]
        return f"requires {', '.join(more)}, too" if more else None

    def _resolve(self) -> Resolved:
        parameters = list(self._raw.parameters.values())
        takes_context = bool(parameters) and self._is_context(parameters[0])
        if takes_context:
            _check_context(self.owner, parameters[0], 0)
            parameters = parameters[1:]
        rest = [p for p in parameters if p.kind is _KINDS.VAR_KEYWORD]
        named = [p for p in parameters if p.kind is not _KINDS.VAR_KEYWORD]
        hints = {p.name: self._hint(p.annotation, f"parameter {p.name}") for p in named}
        others = self._hint(rest[0].annotation, f"**{rest[0].name}") if rest else None
        if self.why_not(PARAMETERS) is None and hints.get("result", others) in _ANYTHING:
            hints["result"] = AnyResult
        required = frozenset(p.name for p in named if p.default is _NOTHING)
        params = Params(self.owner, hints, required, others=others)
        try:
            returns = self._look_up(self._raw.return_annotation)
        except UnresolvedError:
            returns = Any  # what comes back says itself what it is
        return Resolved(
            takes_context=takes_context,
            params=params,
            returns=returns,
            call=self._raw.replace(parameters=parameters),
            positional_only=tuple(p for p in parameters if p.kind is _KINDS.POSITIONAL_ONLY),
            var_keyword=rest[0].name if rest else None,
            plain=None
            if any(p.kind in (_KINDS.KEYWORD_ONLY, _KINDS.VAR_KEYWORD) for p in parameters)
            else tuple(p.name for p in parameters),
        )

    def _is_context(self, parameter: inspect.Parameter) -> bool:
        try:
            hint = self._look_up(parameter.annotation)
        except UnresolvedError:  # often imported for type checkers only
            return _looks_like_context(parameter.annotation)
        return _is_marked(hint)

    def _hint(self, annotation: Any, what: str) -> Any:
        try:
            return self._look_up(annotation)
        except UnresolvedError as error:
            raise ParamsError(
                f"{self.owner}: the annotation {annotation!r} of {what} cannot be resolved: "
                f"{error}. It is needed at run time: import it outside `if TYPE_CHECKING`"
            ) from error

    def _look_up(self, annotation: Any) -> Any:
        if annotation is _NOTHING:
            return Any
        if isinstance(annotation, type) and get_origin(annotation) is None:
            return annotation
        scope = getattr(function_of(self.handler), "__globals__", {})
        names = dict(self.names)
        try:
            return get_type_hints(_probe(annotation), scope, names, include_extras=True)["it"]
        except Exception as error:  # an annotation in quotes is evaluated, and may raise anything
            raise UnresolvedError(str(error)) from error


def names_in(handler: Callable[..., Any], scope: Mapping[str, Any]) -> dict[str, Any]:
    """Return those names of *scope* that the annotations of *handler* mention."""
    annotations = getattr(function_of(handler), "__annotations__", {}).values()
    text = " ".join(a if isinstance(a, str) else repr(a) for a in annotations)
    return {name: scope[name] for name in set(re.findall(r"\w+", text)) if name in scope}


def _probe(annotation: Any) -> Callable[[], None]:
    def probe() -> None: ...

    probe.__annotations__ = {"it": annotation}
    return probe


def _is_marked(hint: Any) -> bool:
    origin = get_origin(hint) or hint
    # Compared structurally: the class itself is in a layer above this one.
    return getattr(origin, "__nursery_queue_context__", False) is True


def _looks_like_context(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return re.fullmatch(r"([\w.]+\.)?TaskContext", annotation.strip("'\" ")) is not None
    return _is_marked(annotation)


def _check_context(owner: str, parameter: inspect.Parameter, position: int) -> None:
    if position != 0 or parameter.kind is _KINDS.KEYWORD_ONLY:
        msg = f"{owner}: the TaskContext must come first, not as parameter {parameter.name}"
        raise TypeError(msg)


def _as_python_words_it(message: str) -> str:
    return f"got {message}" if message.startswith(("too many", "multiple")) else message
