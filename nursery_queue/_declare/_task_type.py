"""A handler with its defaults, and a call of it that is ready to be stored."""

from __future__ import annotations

import inspect
import sys

from collections.abc import Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar, Unpack

import attrs

from nursery_queue._core._checks import label
from nursery_queue._core._completion import PARAMETERS
from nursery_queue._core._declaration import AS_DECLARED, KEY_AS_DECLARED, Declaration
from nursery_queue._core._errors import PayloadTooLarge, ResultTooLarge
from nursery_queue._core._model import Claim, NewTask
from nursery_queue._core._outcome import Policy
from nursery_queue._core._retry import RetryPolicy
from nursery_queue._json._codec import Params, dump_result

from ._key import DeclaredKey, key_by_name, key_of_call, stored_default
from ._options import Options, Overrides
from ._signature import Signature


P = ParamSpec("P")
R = TypeVar("R")

MAX_PARAMS_BYTES = 1_000_000
MAX_RESULT_BYTES = 1_000_000


@attrs.frozen
class TaskRequest:
    """A call of a task type, checked and encoded: everything an enqueue needs.

    Made by `TaskType.bind`, or by `by_name` where the code of the task type lives elsewhere.
    """

    task_type: str
    params: str = attrs.field(repr=False)  # a JSON object, as text; not for logs
    overrides: Overrides = attrs.field(factory=Overrides)
    # What counts if it is not overridden. As it is here: as the store knows it to be declared.
    queue: str | None = None
    priority: int | None = None
    key: str | None = KEY_AS_DECLARED
    # JSON text: what is stored when it has ended
    on_complete: str | None = attrs.field(default=AS_DECLARED, repr=False)
    # Where its handler is, if it is known here.
    made_by: TaskType[..., Any] | None = attrs.field(default=None, eq=False, repr=False)

    @classmethod
    def by_name(
        cls, name: str, params: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> TaskRequest:
        """Return a call of the task type called *name*, which need not be known here.

        Nothing but the worker that runs it can tell whether *params* fit. Queue, priority, key
        and on_complete are as declared, where *options* do not say: by the client's App, else as
        workers have stored it when they started, else `default`, 0 and none.

        Raises:
            ParamsError: One of *params* is not JSON, even after conversion.
            ValueError, TypeError: An option that is not known or out of its bounds.
        """
        name = label(name, "name")
        text = Params.of_unknown(name).dump(params or {})
        return cls(name, text, Overrides().merged(options))

    def options(self, **overrides: Unpack[Options]) -> TaskRequest:
        """Return this call with *overrides*, which win over earlier ones.

        Giving `run_at` drops an earlier `run_after`, and the other way round; giving `retry`
        drops an earlier `max_attempts`; `on_complete=None` drops an earlier `context`.

        Raises:
            ValueError: A value out of its bounds; `run_at` and `run_after` at once.
            TypeError: An unknown option, or a value of the wrong type.
            ParamsError: A context that cannot be written as JSON.
        """
        return attrs.evolve(self, overrides=self.overrides.merged(overrides))

    def to_new_task(self, max_params_bytes: int = MAX_PARAMS_BYTES) -> NewTask:
        """Return what a store stores.

        Raises:
            PayloadTooLarge: The params, the context or, with the contexts in it, what is to be
                told are longer than *max_params_bytes* in UTF-8.
            ValueError: There is a context, but no `on_complete`; `dedup_for` or `debounce`, but no
                `dedup_key`; or `debounce` with `dedup_for`, `run_at` or `run_after`.
        """
        given = self.overrides
        on_complete = self.on_complete if given.on_complete is None else given.on_complete or None
        given.check_dedup(self.task_type)
        self._check_size("the params of {} are", self.params, max_params_bytes)
        if on_complete is not None:
            self._check_size("the on_complete of {} is", on_complete, max_params_bytes)
        if given.context is not None:
            if on_complete is None:
                msg = f"{self.task_type} has a context, but no on_complete that would be told it"
                raise ValueError(msg)
            self._check_size("the context of {} is", given.context, max_params_bytes)
        attempts = given.max_attempts
        if attempts is None and given.retry is not None:
            attempts = given.retry.max_attempts
        return NewTask(
            task_type=self.task_type,
            params=self.params,
            queue=self.queue if given.queue is None else given.queue,
            priority=self.priority if given.priority is None else given.priority,
            key=self.key if given.key is None else given.key or None,
            run_at=given.run_at,
            run_after=given.run_after or 0.0,
            max_attempts=attempts,
            backoff=given.retry,
            timeout=given.timeout,
            keep_for=given.keep_for,
            dedup_key=given.dedup_key,
            dedup_for=given.dedup_for,
            debounce=given.debounce,
            on_complete=on_complete,
            context=given.context,
        )

    def _check_size(self, what: str, text: str, limit: int) -> None:
        if (size := _size(text)) > limit:
            raise PayloadTooLarge(
                f"{what.format(self.task_type)} {size} bytes, the limit is {limit}: "
                f"store large data elsewhere and pass a reference"
            )


def _size(text: str) -> int:
    """Return how many bytes of UTF-8 a text has."""
    return len(text) if text.isascii() else len(text.encode())


@attrs.frozen(eq=False, kw_only=True)
class TaskType(Generic[P, R]):
    """A handler with its name and defaults; made by `App.task`.

    Calling it calls the handler, as if it were the plain function. The attributes are as
    declared; what `options` has changed is in *overrides*.

    Attributes:
        name: Under which its tasks are stored.
        handler: The function as it was given.
        queue: Where its tasks go.
        priority: Higher goes first.
        key: The parameter whose value is the key of a task, or a function of the arguments by
            name that returns it; None: tasks have none.
        timeout: Seconds an attempt may take; infinity: no limit.
        retry: How often it is attempted, and how long to wait in between.
        keep_for: Seconds a finished task is kept.
        max_lost: With how many losses of a worker a task fails; None: as the worker says.
        on_complete: What is stored when one of its tasks has ended: JSON text; None: nothing.
        transactional: Whether its writes and its outcome commit together.
        asyncio: Whether the handler is written for asyncio.
        nursery: Whether each attempt has a nursery of its own.
        is_async: Whether the handler is async; a sync one runs in a thread.
        overrides: What `options` has changed.
    """

    name: str
    handler: Callable[..., Any]
    queue: str
    priority: int
    key: DeclaredKey = attrs.field(kw_only=True, default=None)
    timeout: float
    retry: RetryPolicy
    keep_for: float
    max_lost: int | None
    on_complete: str | None
    transactional: bool
    asyncio: bool
    nursery: bool
    is_async: bool
    overrides: Overrides = attrs.field(factory=Overrides)
    signature: Signature = attrs.field(repr=False)
    _policy: Policy = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(lambda self: self._policy_of_the_code(), takes_self=True),
    )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the handler here and now; nothing is stored."""
        return self.handler(*args, **kwargs)

    @property
    def takes_context(self) -> bool:
        """Whether the handler's first parameter is a `TaskContext`."""
        return self.signature.resolve().takes_context

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> TaskRequest:
        """Return a call with these arguments, the context left out, ready to be enqueued.

        Raises:
            TypeError: The arguments do not fit the handler's signature.
            ParamsError: One of them cannot be written as JSON, or an annotation is no use.
            ValueError: The declared key would be empty or longer than 200 bytes.
        """
        values = self.signature.bind(args, kwargs)
        text = self.signature.resolve().params.dump(values)
        key = None
        if self.key is not None and self.overrides.key is None:
            key = key_of_call(self.key, self.signature, values, text)
        return self._request(text, key)

    def options(self, **overrides: Unpack[Options]) -> TaskType[P, R]:
        """Return this task type with *overrides* for what is enqueued through it.

        Later ones win. Giving `run_at` drops an earlier `run_after`, and the other way round;
        giving `retry` drops an earlier `max_attempts`; `on_complete=None` drops an earlier
        `context`, and what the task type declares. The registered task type stays as it is.

        Raises:
            ValueError: A value out of its bounds; `run_at` and `run_after` at once.
            TypeError: An unknown option, or a value of the wrong type.
            ParamsError: A context that cannot be written as JSON.
        """
        return attrs.evolve(self, overrides=self.overrides.merged(overrides))

    def to_completion(self) -> NewTask:
        """Return what is stored, but for the params, when a task has ended that asked for this.

        Raises:
            TypeError: The handler cannot be called with task_id, context and result.
            ValueError: A dedup_key, run_at or the like among the options, or a context without
                on_complete.
        """
        if (why := self.signature.why_not(PARAMETERS)) is not None:
            msg = f"on_complete: {self.name} {why}: it is given task_id, context and result"
            raise TypeError(msg)
        for option in ("dedup_key", "dedup_for", "debounce", "run_at"):
            if (value := getattr(self.overrides, option)) is not None:
                raise ValueError(
                    f"on_complete: {self.name} has {option}={value!r}, but each task that ends "
                    f"has one of its own to tell of it, stored then; queue, priority, key, retry, "
                    f"max_attempts, timeout, keep_for and run_after make sense"
                )
        return self._request("{}", KEY_AS_DECLARED).to_new_task(
            sys.maxsize
        )  # its size counts where it goes

    def _request(self, params: str, key: str | None) -> TaskRequest:
        return TaskRequest(
            self.name,
            params,
            self.overrides,
            self.queue,
            self.priority,
            key,
            self.on_complete,
            made_by=self,
        )

    def key_of(self, request: TaskRequest) -> str | None:
        """Return the key of a call that was made by name.

        Raises:
            ParamsError: The declared key is a function, and the params do not fit the handler.
            TypeError, ValueError: It is no key.
        """
        return key_by_name(self.key, self.signature, request.params)

    def declaration(self) -> Declaration:
        """Return what a worker stores for programs that do not have this code."""
        parameter = self.key if isinstance(self.key, str) else None
        return Declaration(
            name=self.name,
            queue=self.queue,
            priority=self.priority,
            keep_for=self.keep_for,
            on_complete=self.on_complete,
            key_parameter=parameter,
            key_default=None if parameter is None else stored_default(parameter, self.signature),
        )

    def load(self, params: str) -> dict[str, Any]:
        """Return the arguments in *params*, a JSON object as text, by parameter name.

        Raises:
            ParamsError: They do not fit the handler; the message says which and why.
        """
        return self.signature.resolve().params.load(params)

    def invoke(self, context: Any, values: dict[str, Any]) -> Any:
        """Call the handler with what `load` returned, and with *context* if it takes one.

        Returns what the handler returns: for an async one, its coroutine.

        Raises:
            TypeError: The handler is a `def` and returned a coroutine.
        """
        result = self.signature.call(context, values)
        if not self.is_async and inspect.iscoroutine(result):
            result.close()
            raise TypeError(
                f"{self.name} is a `def` that returned a coroutine, so nothing of it has run: a"
                f" decorator between app.task and an `async def`, for instance, has to be an"
                f" `async def` itself and await what it wraps"
            )
        return result

    def dump_result(self, value: Any, max_bytes: int = MAX_RESULT_BYTES) -> str | None:
        """Return what the handler returned as JSON text; None for None.

        Raises:
            ResultError: It cannot be written as JSON; the message says where.
            ResultTooLarge: It is longer than *max_bytes* in UTF-8.
        """
        if value is None:
            return None
        text = dump_result(value, self.signature.resolve().returns, self.name)
        if text is not None and (size := _size(text)) > max_bytes:
            raise ResultTooLarge(
                f"the result of {self.name} is {size} bytes, the limit is {max_bytes}: "
                f"store large data elsewhere and return a reference"
            )
        return text

    def _policy_of_the_code(self) -> Policy:
        return Policy(retry=self.retry, timeout=self.timeout, keep_for=self.keep_for)

    def policy(self, claim: Claim) -> Policy:
        """Return what applies to *claim*: what its row says, else what the code says today."""
        if (
            claim.max_attempts is None
            and claim.backoff is None
            and claim.timeout is None
            and claim.keep_for is None
        ):
            return self._policy
        retry = self.retry if claim.backoff is None else claim.backoff
        if claim.max_attempts is not None:
            retry = attrs.evolve(retry, max_attempts=claim.max_attempts)
        return Policy(
            retry=retry,
            timeout=self.timeout if claim.timeout is None else claim.timeout,
            keep_for=self.keep_for if claim.keep_for is None else claim.keep_for,
        )


def as_request(task: object, /, *args: Any, **kwargs: Any) -> TaskRequest:
    """Return the call that the arguments of an enqueue describe.

    *task* is a task type, the name of one with its params as keywords, or a request
    that is complete already.

    Raises:
        TypeError: It is none of these, or the arguments do not fit it.
        ParamsError: An argument cannot be written as JSON.
    """
    if isinstance(task, TaskType):
        return task.bind(*args, **kwargs)
    if isinstance(task, TaskRequest):
        if args or kwargs:
            raise TypeError(f"this call of {task.task_type} has its arguments already: pass none")
        return task
    if isinstance(task, str):
        if args:
            msg = f"params of a task type given by name are keywords: {task!r} got {args!r:.100}"
            raise TypeError(msg)
        return TaskRequest.by_name(task, kwargs)
    raise TypeError(
        f"enqueue takes a task type, what its bind() returned, or a name, not {task!r:.100}: "
        f"is the function decorated with @app.task?"
    )
