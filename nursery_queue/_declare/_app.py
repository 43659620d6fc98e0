"""Where task types are declared. An app knows no database, so any module can import it."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import sys
import types

from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

import attrs

from nursery_queue._core._callables import function_of
from nursery_queue._core._checks import label
from nursery_queue._core._declaration import AS_DECLARED
from nursery_queue._core._errors import UnknownTaskType
from nursery_queue._core._json_text import is_of
from nursery_queue._core._on_complete import as_on_complete
from nursery_queue._core._retry import RetryPolicy
from nursery_queue._core._when import Cron, Every, as_when

from ._app_schedules import Schedules
from ._key import DeclaredKey, check_key
from ._options import (
    Options,
    Retry,
    Seconds,
    as_keep_for,
    as_max_lost,
    as_priority,
    as_queue,
    as_retry,
    as_timeout,
)
from ._queue_declarations import QueueDeclarations
from ._signature import Signature, names_in
from ._task_type import MAX_PARAMS_BYTES, TaskRequest, TaskType, as_request


if TYPE_CHECKING:
    from nursery_queue._client._context import TaskContext

__all__ = ["MAX_PARAMS_BYTES", "App", "Options", "TaskRequest", "TaskType", "as_request"]

P = ParamSpec("P")
R = TypeVar("R")

_DEFAULT_RETRY = RetryPolicy()


class Declare(Protocol):
    """What `app.task(...)` returns: it makes a handler a task type."""

    # The overlaps are wanted: a context is left out of P, and a coroutine's result is R.
    @overload
    def __call__(
        self, handler: Callable[Concatenate[TaskContext, P], Coroutine[Any, Any, R]], /
    ) -> TaskType[P, R]: ...
    @overload
    def __call__(self, handler: Callable[P, Coroutine[Any, Any, R]], /) -> TaskType[P, R]: ...
    @overload
    def __call__(self, handler: Callable[Concatenate[TaskContext, P], R], /) -> TaskType[P, R]: ...
    @overload
    def __call__(self, handler: Callable[P, R], /) -> TaskType[P, R]: ...


def _as_name(value: Any) -> str | None:
    return None if value is None else label(value, "name")


def _as_max_lost(value: Any) -> int | None:
    return None if value is None else as_max_lost(value)


def _as_on_complete(value: Any) -> str | None:
    return as_on_complete(value) or None


@attrs.frozen(kw_only=True)
class _Declaration:
    """The keywords of `App.task`, checked."""

    name: str | None = attrs.field(converter=_as_name)
    queue: str = attrs.field(converter=as_queue)
    priority: int = attrs.field(converter=as_priority)
    key: DeclaredKey
    timeout: float = attrs.field(converter=as_timeout)
    retry: RetryPolicy = attrs.field(converter=as_retry)
    keep_for: float = attrs.field(converter=as_keep_for)
    max_lost: int | None = attrs.field(converter=_as_max_lost)
    on_complete: str | None = attrs.field(converter=_as_on_complete)
    transactional: bool
    asyncio: bool
    nursery: bool
    schedule: Cron | Every | None = attrs.field(converter=attrs.converters.optional(as_when))


class App(QueueDeclarations, Schedules):
    """The task types and schedules of an application, and what it declares of its queues.

    ``app[name]`` is the task type of that name, ``name in app`` whether there is one.

    Args:
        name: What its schedules belong to. Workers with an App of this name fire them; a schedule
            that none of these declares any more stops, and those of other names are left alone.

    Raises:
        ValueError, TypeError: *name* is not 1 to 255 printable characters.
    """

    def __init__(self, name: str = "main") -> None:
        super().__init__()
        self.name: str = label(name, "name")
        self._task_types: dict[str, TaskType[..., Any]] = {}

    def __repr__(self) -> str:
        return f"<App with {len(self._task_types)} task types>"

    @property
    def task_types(self) -> Mapping[str, TaskType[..., Any]]:
        """The task types by name: a read-only view that shows later ones, too."""
        return types.MappingProxyType(self._task_types)

    @property
    def max_lost(self) -> Mapping[str, int]:
        """How often a worker may be lost with a task, by task type, where that was declared."""
        return {
            name: task_type.max_lost
            for name, task_type in self._task_types.items()
            if task_type.max_lost is not None
        }

    def __contains__(self, name: object) -> bool:
        return name in self._task_types

    def __getitem__(self, name: str) -> TaskType[..., Any]:
        """Return the task type called *name*.

        Raises:
            UnknownTaskType: There is none; the message lists names like it.
        """
        try:
            return self._task_types[name]
        except KeyError:
            close = difflib.get_close_matches(str(name), self._task_types, n=3)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise UnknownTaskType(f"this app has no task type {name!r}{hint}") from None

    def declared(self, request: TaskRequest) -> TaskRequest:
        """Return *request*, made by name, with what it leaves out as this app declares it.

        So for the task that tells how it ended, if that is named only. What this app does not
        know stays as it is.
        """
        if request.made_by is None and (known := self._task_types.get(request.task_type)):
            request = attrs.evolve(
                request,
                queue=known.queue,
                priority=known.priority,
                key=known.key_of(request) if request.overrides.key is None else None,
                on_complete=known.on_complete,
                made_by=known,
            )
        given = request.overrides
        if given.on_complete:
            given = attrs.evolve(given, on_complete=self._told(given.on_complete))
        return attrs.evolve(request, on_complete=self._told(request.on_complete), overrides=given)

    def _told(self, on_complete: str | None) -> str | None:
        """Return *on_complete*, JSON text, filled in if it says no more than a type known here."""
        if on_complete is None or on_complete == AS_DECLARED or '"queue":' in on_complete:
            return on_complete
        known = self._task_types.get(json.loads(on_complete)["task_type"])
        return on_complete if known is None else as_on_complete(known) or None

    @overload
    def task(
        self, handler: Callable[Concatenate[TaskContext, P], Coroutine[Any, Any, R]], /
    ) -> TaskType[P, R]: ...
    @overload
    def task(self, handler: Callable[P, Coroutine[Any, Any, R]], /) -> TaskType[P, R]: ...
    @overload
    def task(self, handler: Callable[Concatenate[TaskContext, P], R], /) -> TaskType[P, R]: ...
    @overload
    def task(self, handler: Callable[P, R], /) -> TaskType[P, R]: ...
    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 0,
        key: DeclaredKey = None,
        timeout: Seconds | None = 900.0,
        retry: Retry = _DEFAULT_RETRY,
        keep_for: Seconds = 86_400.0,
        max_lost: int | None = None,
        on_complete: TaskType[..., Any] | str | None = None,
        transactional: bool = False,
        asyncio: bool = False,
        nursery: bool = False,
        schedule: Cron | Every | None = None,
    ) -> Declare: ...

    def task(
        self,
        handler: Any = None,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 0,
        key: DeclaredKey = None,
        timeout: Seconds | None = 900.0,
        retry: Retry = _DEFAULT_RETRY,
        keep_for: Seconds = 86_400.0,
        max_lost: int | None = None,
        on_complete: TaskType[..., Any] | str | None = None,
        transactional: bool = False,
        asyncio: bool = False,
        nursery: bool = False,
        schedule: Cron | Every | None = None,
    ) -> Any:
        """Make a function a task type; a decorator, with or without arguments.

        Params are a JSON object by parameter name, converted by the annotations. Names in them that
        are defined later are looked up when they are first needed. A first parameter
        annotated `TaskContext` gets the attempt's context and is no part of the params.

        A sync function runs in a thread, where no time limit or cancellation can interrupt it.

        Args:
            handler: An async or sync function, bound method, partial or callable object.
            name: Under which tasks are stored; by default ``module.qualname``.
            queue: Where its tasks go.
            priority: Higher goes first.
            key: The parameter whose value is the task's key, which divides its queue; or a
                function that is called with the arguments by name, defaults included, and
                returns the key. None: tasks have none. See `Options`.
            timeout: Seconds an attempt may take; None: no limit.
            retry: How often to attempt it, and how long to wait; None or False: once.
            keep_for: Seconds to keep a finished task; 0: not at all.
            max_lost: With how many workers that die while they run it a task fails, at least 1:
                losses are not attempts. None: as the worker says, 3 by default.
            on_complete: A task type, with its options, or the name of one. When a task has
                ended for good, in whatever way, one of that type is stored in the same
                transaction. Its handler takes ``task_id``, ``context`` and ``result``, which
                is `Success`, `Failure` or `Cancellation`.
            transactional: Give the handler ``ctx.tx``, whose writes commit with the outcome.
            asyncio: The handler is written for asyncio, and runs on a loop of it that trio runs.
            nursery: Give each attempt a nursery of its own, ``ctx.nursery``.
            schedule: Enqueue it at these instants, without arguments: a `schedule` of its own name.

        Raises:
            TypeError: What is given is no handler, JSON does not convert to the annotation of
                a parameter, or *on_complete* cannot be told; the message says what to write.
            ValueError: An option out of its bounds, a key that is no parameter, or a name that is
                taken.
        """
        declaration = _Declaration(
            name=name,
            queue=queue,
            priority=priority,
            key=key,
            timeout=timeout,
            retry=retry,
            keep_for=keep_for,
            max_lost=max_lost,
            on_complete=on_complete,
            transactional=transactional,
            asyncio=asyncio,
            nursery=nursery,
            schedule=schedule,
        )

        def declare(handler: Any, /) -> TaskType[..., Any]:
            return self._declare(handler, declaration, _caller())

        return declare if handler is None else self._declare(handler, declaration, _caller())

    def _declare(
        self, handler: Any, declaration: _Declaration, scope: Mapping[str, Any]
    ) -> TaskType[..., Any]:
        _check_handler(handler)
        name = declaration.name or label(_default_name(handler), "name")
        is_async = inspect.iscoroutinefunction(_code_of(handler))
        for option in ("asyncio", "transactional", "nursery"):
            if getattr(declaration, option) and not is_async:
                msg = f"{name}: {option}=True needs an `async def` handler; this is a `def`"
                raise ValueError(msg)
        keywords: dict[str, Any] = attrs.asdict(declaration, recurse=False)
        keywords["name"] = name
        del keywords["schedule"]
        task_type = TaskType[..., Any](
            **keywords,
            handler=handler,
            is_async=is_async,
            signature=Signature(handler, name, names_in(handler, scope)),
        )
        task_type.signature.check()
        check_key(declaration.key, task_type.signature)
        if (other := self._task_types.get(name)) is not None:
            raise ValueError(
                f"there are two task types {name!r}: {_where(other.handler)} and "
                f"{_where(handler)}; give one of them another name=..."
            )
        if declaration.schedule is not None:
            self.schedule(name, declaration.schedule, task_type)
        self._task_types[name] = task_type
        return task_type


def _caller() -> Mapping[str, Any]:
    """Return the local names where the decorator is applied, for annotations that use them."""
    frame = inspect.currentframe()
    for _ in range(2):
        frame = frame and frame.f_back
    if frame is None or frame.f_locals is frame.f_globals:
        return {}
    return frame.f_locals


def _code_of(handler: Any) -> Any:
    if inspect.isroutine(handler):
        return handler
    return handler if is_of(handler, functools.partial) else type(handler).__call__


def _check_handler(handler: Any) -> None:
    """Raise `TypeError` if *handler* is none, and say what to write instead."""
    if inspect.iscoroutine(handler):
        name = handler.__qualname__
        handler.close()  # or Python warns that it was never awaited
        msg = f"app.task takes the function, not its call: write app.task({name}), no parentheses"
        raise TypeError(msg)
    if isinstance(handler, TaskType):
        msg = f"{handler.name} is a task type already: write app.task({handler.name}.handler)"
        raise TypeError(msg)
    if isinstance(handler, str):
        raise TypeError(f"app.task takes its name as a keyword: write @app.task(name={handler!r})")
    if isinstance(handler, type):
        raise TypeError(f"app.task takes a function, not the class {handler.__qualname__}")
    if not callable(handler):
        raise TypeError(
            f"app.task takes a function, not {handler!r}: write @app.task above "
            f"`async def ...`, and options as keywords"
        )
    code = _code_of(handler)
    if inspect.isasyncgenfunction(code) or inspect.isgeneratorfunction(code):
        raise TypeError(
            f"{_where(handler)} yields, and a task has one result: return it, "
            f"or write parts of it to a stream"
        )


def _default_name(handler: Any) -> str:
    try:
        return label(f"{_importable(handler.__module__)}.{handler.__qualname__}", "name")
    except AttributeError:
        msg = f"{handler!r} has no name of its own: write app.task(name=...)(handler)"
        raise TypeError(msg) from None


def _importable(module: str) -> str:
    """Return the name under which another process imports *module*, if it is our program."""
    main = sys.modules.get("__main__")
    if module != "__main__" or main is None:
        return module
    if main.__spec__ is not None:  # python -m package.module
        return main.__spec__.name
    file = getattr(main, "__file__", None)  # python module.py; a prompt has none
    return module if file is None else Path(file).stem


def _where(handler: Any) -> str:
    """Return the handler's name, file and line, for messages."""
    function = function_of(handler)
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", repr(function))
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"
