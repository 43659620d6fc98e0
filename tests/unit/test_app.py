from __future__ import annotations

import datetime as dt
import functools
import json
import math
import subprocess
import sys

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from hypothesis import given, strategies as st

from nursery_queue._client._context import TaskContext
from nursery_queue._core._errors import ParamsError, PayloadTooLarge, UnknownTaskType
from nursery_queue._core._model import Claim, Fence
from nursery_queue._core._retry import ONCE, RetryPolicy
from nursery_queue._declare._app import App
from nursery_queue._declare._task_type import TaskRequest, TaskType, as_request


if TYPE_CHECKING:
    from fractions import Fraction as Inner, Fraction as Nowhere

    import nursery_queue._client._context as somewhere

    from nursery_queue._client._context import TaskContext as Alias

NOON = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)


@attrs.frozen
class User:
    name: str


async def send(ctx: TaskContext, email: str, count: int = 1) -> str:
    return f"{ctx.task_id} {email} {count}"


async def resize(path: str, width: int = 640) -> None: ...


def sync(x: int) -> int:
    return x + 1


@pytest.fixture
def app() -> App:
    return App()


def claim(**overrides: Any) -> Claim:
    return Claim(
        fence=Fence(1, 1),
        attempt=1,
        lost=0,
        task_type="x",
        queue="default",
        params="{}",
        **overrides,
    )


def test_bare(app: App) -> None:
    """Without arguments, a task type has the documented defaults and its function's name."""
    task_type = app.task(resize)

    assert task_type.name == f"{__name__}.resize"
    assert task_type.handler is resize
    assert task_type.queue == "default"
    assert task_type.priority == 0
    assert task_type.timeout == 900.0
    assert task_type.retry == RetryPolicy()
    assert task_type.keep_for == 86_400.0
    assert (task_type.transactional, task_type.asyncio, task_type.nursery) == (False, False, False)
    assert task_type.is_async
    assert not task_type.takes_context


def test_with_keywords(app: App) -> None:
    """Options are taken as they are; times may be timedeltas."""
    task_type = app.task(
        name="mail",
        queue="slow",
        priority=-3,
        timeout=dt.timedelta(minutes=1),
        retry=RetryPolicy(max_attempts=2),
        keep_for=0,
        transactional=True,
        nursery=True,
        asyncio=True,
    )(send)

    assert (task_type.name, task_type.queue, task_type.priority) == ("mail", "slow", -3)
    assert (task_type.timeout, task_type.keep_for) == (60.0, 0.0)
    assert task_type.retry.max_attempts == 2
    assert (task_type.transactional, task_type.asyncio, task_type.nursery) == (True, True, True)


@pytest.mark.parametrize("retry", [None, False])
def test_no_retry(app: App, retry: Any) -> None:
    """Neither None nor False means anything but one attempt."""
    assert app.task(retry=retry)(resize).retry == ONCE


@pytest.mark.parametrize("timeout", [None, math.inf])
def test_no_time_limit(app: App, timeout: float | None) -> None:
    """No time limit is infinity inside."""
    assert app.task(timeout=timeout)(resize).timeout == math.inf


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"queue": ""}, ValueError),
        ({"queue": None}, TypeError),
        ({"name": "a\nb"}, ValueError),
        ({"name": ""}, ValueError),
        ({"priority": 2**31}, ValueError),
        ({"priority": 1.5}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": math.nan}, ValueError),
        ({"timeout": "10"}, TypeError),
        ({"keep_for": -1}, ValueError),
        ({"keep_for": math.inf}, ValueError),
        ({"keep_for": None}, TypeError),
        ({"retry": 3}, TypeError),
        ({"retry": True}, TypeError),
    ],
)
def test_bad_declarations(app: App, options: dict[str, Any], error: type[Exception]) -> None:
    """A bad option is refused at once, by name, with the offending value."""
    ((name, value),) = options.items()
    with pytest.raises(error, match=name) as caught:
        app.task(**options)

    assert repr(value) in str(caught.value)


def test_it_is_still_the_function(app: App) -> None:
    """A task type can be called like the function it was made of."""
    assert app.task(sync)(2) == 3


def test_two_of_one_name(app: App) -> None:
    """Two task types of one name are refused, and the message says where both are."""
    app.task(name="mail")(send)

    with pytest.raises(ValueError, match="two task types 'mail'") as caught:
        app.task(name="mail")(resize)

    assert str(caught.value).count(__file__) == 2
    assert app["mail"].handler is send


class Handlers:
    async def method(self, x: int) -> None: ...

    async def __call__(self, x: int) -> None: ...


async def agen(x: int) -> AsyncIterator[int]:
    yield x


def gen(x: int) -> Iterator[int]:
    yield x


async def stars(*args: int) -> None: ...


async def late_context(x: int, ctx: TaskContext) -> None: ...


async def keyword_context(*, ctx: TaskContext) -> None: ...


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: resize("a"), r"write app\.task\(resize\)"),
        (lambda: "mail", r"@app\.task\(name='mail'\)"),
        (lambda: Handlers, "not the class Handlers"),
        (lambda: 5, "takes a function, not 5"),
        (lambda: agen, "agen .* yields"),
        (lambda: gen, "gen .* yields"),
        (lambda: stars, r"stars takes \*args"),
        (lambda: late_context, "must come first, not as parameter ctx"),
        (lambda: keyword_context, "must come first, not as parameter ctx"),
        (lambda: functools.partial(resize, width=1), "has no name of its own"),
        (Handlers, "has no name of its own"),
        (lambda: App().task(resize), "is a task type already"),
    ],
)
def test_what_is_no_handler(app: App, make: Callable[[], Any], reason: str) -> None:
    """What cannot be a task is refused at once, and the message says what to write."""
    with pytest.raises(TypeError, match=reason):
        app.task(make())

    assert not app.task_types


@pytest.mark.parametrize("option", ["transactional", "asyncio", "nursery"])
def test_sync_handlers_cannot(app: App, option: str) -> None:
    """What needs the event loop is refused for a `def`."""
    options: dict[str, Any] = {option: True}

    with pytest.raises(ValueError, match=f"{option}=True needs an `async def`"):
        app.task(**options)(sync)


def test_methods_partials_and_callable_objects(app: App) -> None:
    """Bound methods, partials and callable objects are handlers, too."""
    method = app.task(Handlers().method)
    partial = app.task(name="partial")(functools.partial(resize, width=5))
    instance = app.task(name="object")(Handlers())

    assert method.is_async
    assert partial.is_async
    assert instance.is_async
    assert method.bind(1).params == '{"x":1}'
    assert partial.bind("a").params == '{"path":"a"}'
    assert instance.bind(1).params == '{"x":1}'
    with pytest.raises(ParamsError, match="expected int"):
        instance.load('{"x": "1"}')


def test_a_wrapped_handler(app: App) -> None:
    """A wrapper made with functools.wraps has the signature of what it wraps."""

    @functools.wraps(send)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await send(*args, **kwargs)

    task_type: TaskType[..., Any] = app.task(wrapper)

    assert task_type.takes_context
    assert task_type.bind("a").params == '{"email":"a"}'


def test_the_mapping(app: App) -> None:
    """Task types are found by name, in a view that cannot be written."""
    task_type = app.task(name="mail")(send)

    assert app["mail"] is task_type
    assert "mail" in app
    assert "post" not in app
    assert dict(app.task_types) == {"mail": task_type}
    with pytest.raises(TypeError):
        app.task_types["x"] = task_type  # type: ignore[index]  # that is the test


def test_an_unknown_task_type(app: App) -> None:
    """The error for an unknown name offers those like it."""
    app.task(name="send_welcome")(send)

    with pytest.raises(UnknownTaskType, match=r"no task type 'send_welcom'; did you mean 'send_"):
        app["send_welcom"]
    with pytest.raises(UnknownTaskType, match=r"no task type 'xyz'$"):
        app["xyz"]


# -- binding -----------------------------------------------------------------------


def test_bind(app: App) -> None:
    """A call becomes its task type's name and a JSON object by parameter name."""
    request = app.task(name="mail")(send).bind("a@b.c", count=2)

    assert (request.task_type, request.params) == ("mail", '{"email":"a@b.c","count":2}')


def test_defaults_are_not_stored(app: App) -> None:
    """What the caller leaves out, the handler's code decides when it runs."""
    assert app.task(resize).bind("a").params == '{"path":"a"}'


@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        ((), {}, "mail() missing a required argument: 'email'"),
        (("a", 1, 2), {}, "mail() got too many positional arguments"),
        (("a",), {"email": "b"}, "mail() got multiple values for argument 'email'"),
        (("a",), {"x": 1}, "mail() got an unexpected keyword argument 'x'"),
    ],
)
def test_arguments_that_do_not_fit(
    app: App, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str
) -> None:
    """Arguments are checked against the signature as Python would, the context left out."""
    task_type: TaskType[..., Any] = app.task(name="mail")(send)

    with pytest.raises(TypeError) as caught:
        task_type.bind(*args, **kwargs)

    assert str(caught.value) == reason


def test_bad_params_surface_at_bind(app: App) -> None:
    """What is not JSON is refused before anything is stored, by name."""
    with pytest.raises(ParamsError, match="mail: parameter email is of type object"):
        app.task(name="mail")(send).bind(object())  # type: ignore[arg-type]  # that is the test


async def odd(ctx: TaskContext, a: int, b: int = 2, /, c: int = 3, *, d: int = 4) -> Any:
    return (ctx, a, b, c, d)


async def open_ended(a: int, **rest: User) -> Any:
    return (a, rest)


async def run(handler: Any, ctx: Any, params: str) -> Any:
    task_type = App().task(name="it")(handler)
    return await task_type.invoke(ctx, task_type.load(params))


@pytest.mark.parametrize(
    ("params", "got"),
    [
        ('{"a": 1}', (1, 2, 3, 4)),
        ('{"a": 1, "b": 5}', (1, 5, 3, 4)),
        ('{"c": 1, "a": 5, "d": 0}', (5, 2, 1, 0)),
    ],
)
async def test_every_kind_of_parameter(params: str, got: tuple[int, ...]) -> None:
    """Positional-only, keyword-only and other parameters arrive where they belong."""
    ctx = object()

    assert await run(odd, ctx, params) == (ctx, *got)


def second_default(a: int = 1, b: int = 2, /) -> Any:
    return (a, b)


def test_a_positional_only_default_in_the_middle(app: App) -> None:
    """Leaving out a positional-only parameter before one that is given is possible in JSON."""
    task_type = app.task(second_default)

    assert task_type.invoke(None, task_type.load('{"b": 5}')) == (1, 5)
    assert task_type.invoke(None, task_type.load("{}")) == (1, 2)


async def test_open_ended_keywords() -> None:
    """`**rest` takes what has no parameter of its own, converted by its annotation."""
    task_type: TaskType[..., Any] = App().task(open_ended)
    request = task_type.bind(1, b=User("x"))

    assert request.params == '{"a":1,"b":{"name":"x"}}'
    assert await run(open_ended, None, request.params) == (1, {"b": User("x")})


def clash(x: int, /, **rest: int) -> None: ...


def test_one_name_for_two_arguments(app: App) -> None:
    """Where two arguments would have the same name in JSON, the call is refused."""
    task_type: TaskType[..., Any] = app.task(name="clash")(clash)

    with pytest.raises(TypeError, match=r"clash\(\) got multiple values for argument 'x'"):
        task_type.bind(1, x=2)


# -- annotations -------------------------------------------------------------------


async def only_for_checkers(ctx: Alias, x: int) -> None: ...


async def checkers_context(ctx: somewhere.TaskContext, x: int) -> None: ...


async def nowhere(ctx: TaskContext, user: list[Nowhere]) -> None: ...


async def returns_nowhere(x: int) -> Nowhere:
    raise NotImplementedError


async def later(user: Later) -> None: ...


def test_annotations_are_looked_up_late(app: App) -> None:
    """An annotation may name what its module defines after the handler."""
    task_type = app.task(later)

    assert task_type.load('{"user": {"name": "x"}}') == {"user": Later("x")}


@attrs.frozen
class Later:
    name: str


def test_annotations_of_the_function_around(app: App) -> None:
    """An annotation may name a class of the function in which the decorator stands."""

    @attrs.frozen
    class Local:
        name: str

    @app.task
    async def bare(user: list[Local]) -> None: ...

    @app.task(name="keywords")
    async def with_keywords(user: Local | None) -> None: ...

    assert bare.load('{"user": [{"name": "x"}]}') == {"user": [Local("x")]}
    assert with_keywords.load('{"user": {"name": "x"}}') == {"user": Local("x")}


def test_a_context_known_to_type_checkers_alone(app: App) -> None:
    """A context that is imported for type checkers only is known by its name."""
    assert app.task(checkers_context).bind(1).params == '{"x":1}'


@pytest.mark.parametrize("handler", [nowhere, only_for_checkers])
def test_an_annotation_that_names_nothing(app: App, handler: Any) -> None:
    """An annotation that cannot be resolved is an error at first use, which says what to do."""
    task_type = app.task(name="mail")(handler)

    for use in (lambda: task_type.bind(1), lambda: task_type.load("{}")):
        with pytest.raises(ParamsError, match=r"mail: the annotation .* cannot be resolved: name"):
            use()


class Plain: ...


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (complex, "complex"),
        (list[Plain], r"list\[.*Plain\] \(Plain\)"),
        (type, "type"),
        (User | Plain, r".*User \| .*Plain \(Plain\)"),
        ("Plain | None", r".*Plain \| None \(Plain\)"),
    ],
)
def test_what_json_does_not_convert_to_is_refused_at_the_declaration(
    app: App, annotation: Any, name: str
) -> None:
    """It says which parameter, which type, and what to write instead; nothing is declared."""

    async def handler(count: int, it: Any) -> None: ...

    handler.__annotations__["it"] = annotation
    expected = f"mail: parameter it: no way from JSON to {name}: .*str or Any"

    with pytest.raises(TypeError, match=expected) as caught:
        app.task(name="mail")(handler)
    assert "mail" not in app
    assert "Register" not in str(caught.value)


@attrs.frozen
class Outer:
    inner: Inner


def test_a_class_whose_fields_are_defined_later(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an annotation names need not be there at the declaration, at whatever depth."""

    @app.task
    async def handler(it: list[Outer]) -> None: ...

    with pytest.raises(ParamsError, match=r"parameter it: .*'Inner' is not defined"):
        handler.load('{"it": []}')
    monkeypatch.setitem(globals(), "Inner", User)

    assert str(handler.load('{"it": [{"inner": {"name": "x"}}]}')["it"][0].inner) == str(User("x"))


def test_a_result_annotation_that_names_nothing(app: App) -> None:
    """A result is written as what it is, so its annotation may be for type checkers only."""
    task_type = app.task(returns_nowhere)

    assert task_type.bind(1).params == '{"x":1}'
    assert task_type.dump_result(User("x")) == '{"name":"x"}'


def test_a_class_that_is_called_like_the_context(app: App) -> None:
    """A class of the user's own that happens to be called TaskContext is a parameter."""

    @attrs.frozen
    class TaskContext:
        x: int

    @app.task
    async def handler(ctx: TaskContext, other: TaskContext) -> None: ...

    assert not handler.takes_context
    assert handler.load('{"ctx": {"x": 1}, "other": {"x": 2}}')["other"] == TaskContext(2)


# -- options -----------------------------------------------------------------------


def test_options_are_in_the_new_task(app: App) -> None:
    """Each option goes into its field; the rest is left to the code that runs it."""
    task_type = app.task(name="mail", queue="slow", priority=3)(resize)
    plain = task_type.bind("a").to_new_task()
    new = (
        task_type.options(queue="q", priority=1, run_after=dt.timedelta(minutes=1), timeout=5)
        .options(keep_for=0, dedup_key="k", retry=RetryPolicy(max_attempts=7))
        .bind("a")
        .to_new_task()
    )

    assert (plain.queue, plain.priority, plain.run_at, plain.run_after) == ("slow", 3, None, 0.0)
    assert (plain.max_attempts, plain.backoff, plain.timeout, plain.keep_for) == (None,) * 4
    assert (new.queue, new.priority, new.run_after, new.timeout) == ("q", 1, 60.0, 5.0)
    assert (new.keep_for, new.dedup_key) == (0.0, "k")
    assert (new.max_attempts, new.backoff) == (7, RetryPolicy(max_attempts=7))


def test_options_do_not_change_the_task_type(app: App) -> None:
    """Options make another task type; the registered one stays as it is."""
    task_type = app.task(resize)
    changed = task_type.options(queue="q")

    assert changed is not task_type
    assert task_type.bind("a").to_new_task().queue == "default"
    assert app[task_type.name] is task_type


def test_later_options_win(app: App) -> None:
    """Options are chainable, also on a request; run_at and run_after displace each other."""
    task_type = app.task(resize)
    at = task_type.options(run_after=5).options(run_at=NOON).bind("a")
    after = at.options(run_after=7)

    assert (at.to_new_task().run_at, at.to_new_task().run_after) == (NOON, 0.0)
    assert (after.to_new_task().run_at, after.to_new_task().run_after) == (None, 7.0)
    assert after.options(run_after=None).to_new_task().run_after == 0.0


def test_attempts_and_policies(app: App) -> None:
    """max_attempts refines a policy given with it or before it; a later policy is a whole one."""
    request = app.task(resize).bind("a")
    policy = RetryPolicy(max_attempts=9, initial=2)

    both = request.options(retry=policy, max_attempts=3).to_new_task()
    refined = request.options(retry=policy).options(max_attempts=3).to_new_task()
    replaced = request.options(max_attempts=3).options(retry=policy).to_new_task()
    once = request.options(retry=None).to_new_task()

    assert (both.max_attempts, both.backoff) == (3, policy)
    assert both == refined
    assert replaced.max_attempts == 9
    assert once.max_attempts == 1


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"run_at": NOON, "run_after": 1}, ValueError, "not both"),
        ({"run_at": dt.datetime(2030, 1, 1)}, ValueError, "must be timezone-aware"),  # noqa: DTZ001  # on purpose
        ({"run_at": "tomorrow"}, TypeError, "must be a datetime"),
        ({"run_after": -1}, ValueError, "not -1"),
        ({"run_after": math.nan}, ValueError, "not nan"),
        ({"run_after": math.inf}, ValueError, "not inf"),
        ({"max_attempts": 0}, ValueError, "not 0"),
        ({"max_attempts": True}, TypeError, "not True"),
        ({"timeout": 0}, ValueError, "not 0"),
        ({"keep_for": math.nan}, ValueError, "not nan"),
        ({"priority": -(2**31) - 1}, ValueError, "priority"),
        ({"queue": " \n"}, ValueError, "queue"),
        ({"dedup_key": ""}, ValueError, "dedup_key"),
        ({"dedup_key": "a\0"}, ValueError, "dedup_key"),
        ({"dedup_key": "x" * 501}, ValueError, "dedup_key"),
        ({"dedup_key": 5}, TypeError, "dedup_key"),
        ({"retries": 5}, TypeError, "unknown option 'retries'; there are: queue, priority, run_at"),
    ],
)
def test_bad_options(
    app: App, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    """A bad option is refused where it is given, with the offending value."""
    task_type = app.task(resize)

    for use in (task_type.options, task_type.bind("a").options):
        with pytest.raises(error, match=reason):
            use(**options)
    with pytest.raises(error, match=reason):
        TaskRequest.by_name("x", {}, **options)


# -- requests ----------------------------------------------------------------------


def test_by_name() -> None:
    """A task type whose code lives elsewhere is named; params are written as what they are."""
    request = TaskRequest.by_name("mail", {"user": User("x"), "n": 1}, queue="q")

    assert request.to_new_task().params == '{"user":{"name":"x"},"n":1}'
    assert request.to_new_task().queue == "q"
    assert TaskRequest.by_name("mail").params == "{}"
    with pytest.raises(ValueError, match="name"):
        TaskRequest.by_name("")


def test_requests_are_values(app: App) -> None:
    """Requests of the same call are equal, and cannot be changed."""
    task_type = app.task(resize)

    assert task_type.bind("a") == task_type.bind("a")
    assert task_type.bind("a") != task_type.options(priority=1).bind("a")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        task_type.bind("a").params = "{}"  # type: ignore[misc]  # that is the test


def test_a_large_payload() -> None:
    """The limit is in bytes of UTF-8; the error names the task type, the size and the limit."""
    request = TaskRequest.by_name("mail", {"x": "é" * 10})

    assert request.to_new_task(max_params_bytes=28).params == request.params
    with pytest.raises(PayloadTooLarge, match="params of mail are 28 bytes, the limit is 27"):
        request.to_new_task(max_params_bytes=27)


def test_the_default_limit() -> None:
    """A million bytes go, one more does not."""
    overhead = len('{"x":""}')

    TaskRequest.by_name("mail", {"x": "a" * (1_000_000 - overhead)}).to_new_task()
    with pytest.raises(PayloadTooLarge):
        TaskRequest.by_name("mail", {"x": "a" * (1_000_001 - overhead)}).to_new_task()


def test_as_request(app: App) -> None:
    """An enqueue takes a task type, a request or a name, and says so to everything else."""
    task_type = app.task(name="mail")(resize)
    request = task_type.bind("a")

    assert as_request(task_type, "a") == request
    assert as_request(request) is request
    by_name = as_request("mail", path="a")
    assert (by_name.task_type, by_name.params) == (request.task_type, request.params)
    assert app.declared(by_name) == request
    for task, args in [(request, ("a",)), ("mail", ("a",)), (resize, ("a",)), (None, ())]:
        with pytest.raises(TypeError):
            as_request(task, *args)


# -- policy ------------------------------------------------------------------------


def test_the_policy_of_the_code(app: App) -> None:
    """A row without overrides gets what the code says today."""
    retry = RetryPolicy(max_attempts=2)
    policy = app.task(retry=retry, timeout=None, keep_for=1)(resize).policy(claim())

    assert (policy.retry, policy.timeout, policy.keep_for) == (retry, math.inf, 1.0)


@given(
    st.none() | st.integers(1, 99),
    st.none() | st.builds(RetryPolicy, max_attempts=st.integers(1, 99)),
    st.none() | st.floats(1, 99) | st.just(math.inf),
    st.none() | st.floats(0, 99),
)
def test_the_policy_of_a_row(
    attempts: int | None, backoff: RetryPolicy | None, timeout: float | None, keep: float | None
) -> None:
    """What the row says wins, field by field."""
    task_type = App().task(resize)
    row = claim(max_attempts=attempts, backoff=backoff, timeout=timeout, keep_for=keep)
    policy = task_type.policy(row)

    base = backoff or task_type.retry
    assert policy.retry == (base if attempts is None else attrs.evolve(base, max_attempts=attempts))
    assert policy.timeout == (900.0 if timeout is None else timeout)
    assert policy.keep_for == (86_400.0 if keep is None else keep)


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.text()))
def test_params_by_name_are_json(params: dict[str, Any]) -> None:
    """Whatever is accepted is a JSON object that says the same."""
    try:
        request = TaskRequest.by_name("x", params)
    except ParamsError:
        return

    assert json.loads(request.params) == params


@pytest.mark.parametrize("how", [["program.py"], ["-m", "program"]])
def test_a_program_is_named_as_others_import_it(tmp_path: Path, how: list[str]) -> None:
    """A handler in a module that is run as a program has the name its workers know it by."""
    program = tmp_path / "program.py"
    program.write_text(
        "import nursery_queue as nq\n"
        "app = nq.App()\n"
        "@app.task\n"
        "async def send() -> None: ...\n"
        "print(send.name)\n"
    )
    done = subprocess.run(
        [sys.executable, *how], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout == "program.send\n"
