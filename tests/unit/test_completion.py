from __future__ import annotations

import datetime as dt
import json
import math
import random

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs
import pytest

from hypothesis import given, strategies as st

import nursery_queue as nq

from nursery_queue._core import _outcome
from nursery_queue._core._errors import ParamsError, PayloadTooLarge
from nursery_queue._core._model import Claim, Fence, Held
from nursery_queue._declare._task_type import TaskRequest, TaskType
from nursery_queue._json._codec import Params
from nursery_queue.testing import perform


if TYPE_CHECKING:
    from fractions import Fraction as Nowhere

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab\x7f\xe9", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xy"), inner, max_size=3),
)
ENDINGS = st.one_of(
    st.builds(nq.Success, JSON),
    st.builds(nq.Failure, st.text("ab:"), st.text("ab.")),
    st.builds(nq.Cancellation, st.text("ab ")),
)
NOON = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)
CLASSES = [nq.Success, nq.Failure, nq.Cancellation]


@attrs.frozen
class Order:
    number: int
    at: dt.datetime = NOON


@pytest.fixture
def app() -> nq.App:
    return nq.App()


async def send(email: str) -> None: ...


async def done(task_id: int, context: Any, result: nq.Result) -> None: ...


def plain(app: nq.App, handler: Any, name: str = "done", **options: Any) -> TaskType[..., Any]:
    return app.task(name=name, **options)(handler)


def stored(request: TaskRequest) -> Any:
    """Return what a request says is to be stored when its task has ended."""
    text = request.to_new_task().on_complete
    return None if text is None else json.loads(text)


# -- the classes in JSON -----------------------------------------------------------


@given(ENDINGS)
def test_there_and_back(ending: nq.Result) -> None:
    """What is written as JSON is read back as the same, whichever way it is annotated."""
    for hint in (type(ending), nq.Result, nq.Result | None, nq.Result | int, list[nq.Result]):
        params = Params("x", {"r": hint})
        value = [ending] if hint == list[nq.Result] else ending

        assert params.load(params.dump({"r": value})) == {"r": value}


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (nq.Success([1]), '{"status":"succeeded","value":[1]}'),
        (
            nq.Failure("ValueError: no", "ValueError"),
            '{"status":"failed","error":"ValueError: no","error_type":"ValueError"}',
        ),
        (nq.Cancellation("x"), '{"status":"cancelled","reason":"x"}'),
    ],
    ids=str,
)
def test_how_it_is_written(ending: nq.Result, text: str) -> None:
    """The status tells the classes apart; a value is written as what it is."""
    for hint in (type(ending), nq.Result, Any, nq.Success | nq.Failure | nq.Cancellation | None):
        assert Params("x", {"r": hint}).dump({"r": ending}) == f'{{"r":{text}}}'
    assert Params("x", {"r": nq.Result}).dump({"r": nq.Success(Order(1))}) == (
        '{"r":{"status":"succeeded","value":{"number":1,"at":"2030-01-01T12:00:00+00:00"}}}'
    )


def test_part_of_the_union() -> None:
    """A handler may name those it can be told, alone or together, and None with them."""
    two = Params("x", {"r": nq.Success | nq.Failure | None})

    assert two.load('{"r": null}') == {"r": None}
    assert two.load('{"r": {"status": "succeeded", "value": 1}}') == {"r": nq.Success(1)}
    with pytest.raises(ParamsError, match=r"r\.status: expected one of 'succeeded', 'failed', got"):
        two.load('{"r": {"status": "cancelled", "reason": "x"}}')
    with pytest.raises(ParamsError, match="an object"):
        Params("x", {"r": nq.Result}).load('{"r": null}')


@pytest.mark.parametrize(
    ("hint", "value", "reason"),
    [
        (nq.Result, {"status": "lost"}, "r.status: expected one of 'succeeded', 'failed', "),
        (nq.Result, {"status": "lost"}, "got 'lost'"),
        (nq.Result, {"status": ["failed"]}, "got ['failed']"),
        (nq.Result, {"status": None}, "got None"),
        (nq.Result, {}, "r.status: required, but missing"),
        (nq.Result, 5, "r: expected an object (Success | Failure | Cancellation), got 5"),
        (nq.Failure, [], "r: expected an object (Failure), got []"),
        (nq.Failure, {"status": "succeeded", "value": 1}, "r.status: expected 'failed', got 'succ"),
        (nq.Result, {"status": "succeeded"}, "r.value: required, but missing"),
        (nq.Result, {"status": "cancelled", "reason": 5}, "r.reason: expected str, got 5"),
        (nq.Result, {"status": "cancelled", "reason": "", "x": 1}, "r: has no field 'x'"),
        (nq.Failure | None, {"status": "failed", "error": "", "error_type": 1}, "r.error_type: "),
    ],
    ids=str,
)
def test_what_is_no_ending(hint: Any, value: Any, reason: str) -> None:
    """Anything else is refused, and the error says where and what was expected."""
    with pytest.raises(ParamsError) as caught:
        Params("mail", {"r": hint}).load(json.dumps({"r": value}))

    assert str(caught.value).startswith("mail: parameter r")
    assert reason in str(caught.value)


@pytest.mark.parametrize("cls", CLASSES)
def test_what_cannot_be_written(cls: type[Any]) -> None:
    """Where one of the classes is wanted nothing else can be passed."""
    with pytest.raises(ParamsError, match=f"expected {cls.__name__}, got {{'status'"):
        Params("mail", {"r": cls}).dump({"r": {"status": "x"}})


# -- what a handler is called with -------------------------------------------------


async def unannotated(task_id: Any, context: Any, result: Any) -> Any:
    return (task_id, context, result)


unannotated.__annotations__.clear()


async def anything(result: Any, task_id: Any, context: Any, more: int = 1) -> Any:
    return (task_id, context, result)


async def an_object(ctx: nq.TaskContext, context: object, result: object, task_id: int) -> Any:
    return (task_id, context, result)


async def open_ended(ctx: nq.TaskContext, **told: Any) -> Any:
    return (told["task_id"], told["context"], told["result"])


def positional(task_id: int, context: str, result: nq.Result, /) -> Any:
    return (task_id, context, result)


def keywords(*, result: nq.Success, context: str, task_id: int) -> Any:
    return (task_id, context, result)


HANDLERS = [unannotated, anything, an_object, open_ended, positional, keywords]


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.__name__)
async def test_the_result_is_one_of_the_classes(handler: Any, app: nq.App) -> None:
    """Whether `result` is annotated or not, and in whatever order, a handler gets an object."""
    told: list[Any] = []
    task_type = plain(app, handler)
    values = task_type.load(
        '{"task_id": 7, "context": "c", "result": {"status": "succeeded", "value": 5}}'
    )
    got = task_type.invoke(object(), values)
    told.append(await got if task_type.is_async else got)

    assert told == [(7, "c", nq.Success(5))]


async def test_trying_a_handler_out(app: nq.App) -> None:
    """A test passes a handler one of the classes, and it arrives as such, annotated or not."""
    seen: list[Any] = []

    @app.task
    async def note(task_id: int, context: Any, result: Any) -> None:
        seen.append((task_id, context, result))

    for ending in (nq.Success([5]), nq.Failure("E: x", "E"), nq.Cancellation("why")):
        await perform(note, 1, {"a": 1}, ending)

        assert seen.pop() == (1, {"a": 1}, ending)


@pytest.mark.parametrize(
    "value",
    [5, None, {}, {"status": "succeeded"}, {"status": "lost", "value": 1}, {"status": ["failed"]}],
    ids=repr,
)
def test_what_has_another_form_stays_as_it_is(app: nq.App, value: Any) -> None:
    """A `result` without an annotation takes anything that is not an ending unchanged."""
    text = json.dumps({"task_id": 1, "context": None, "result": value})

    assert plain(app, anything).load(text)["result"] == value


async def as_a_mapping(task_id: int, context: Any, result: dict[str, Any]) -> None: ...


async def about_something_else(result: Any, other: int) -> None: ...


@pytest.mark.parametrize(
    ("handler", "others"),
    [(as_a_mapping, {"task_id": 1, "context": None}), (about_something_else, {"other": 1})],
)
def test_a_result_of_another_kind(app: nq.App, handler: Any, others: dict[str, Any]) -> None:
    """Where the annotation says what is wanted, or the handler is for other things, that holds."""
    ending = {"status": "succeeded", "value": 5}

    assert plain(app, handler).load(json.dumps({**others, "result": ending}))["result"] == ending


# -- declarations ------------------------------------------------------------------


def test_nobody_is_told_by_default(app: nq.App) -> None:
    """Without `on_complete` nothing is stored at the end."""
    new = plain(app, send, "send").bind("a").to_new_task()

    assert (new.on_complete, new.context) == (None, None)


def test_a_task_type_that_is_told(app: nq.App) -> None:
    """A declared `on_complete` is part of every task: its name, queue and priority."""
    told = plain(app, done, queue="books", priority=3)
    request = app.task(on_complete=told)(send).bind("a")

    assert stored(request) == {
        "task_type": "done",
        "queue": "books",
        "priority": 3,
        "on_complete": None,
    }
    assert request.to_new_task().context is None


def test_by_name(app: nq.App) -> None:
    """The name of a task type whose code lives elsewhere will do: all else is as declared there."""
    asked = {"task_type": "elsewhere"}

    assert stored(app.task(on_complete="elsewhere")(send).bind("a")) == asked
    assert stored(TaskRequest.by_name("x", on_complete="elsewhere")) == asked


def test_its_options_are_honoured(app: nq.App) -> None:
    """What `options` changed of the one that is told goes with it, and no more."""
    told = plain(app, done).options(
        queue="q",
        priority=-2,
        retry=nq.RetryPolicy(max_attempts=7, initial=2, jitter=0),
        max_attempts=4,
        timeout=None,
        keep_for=0,
        run_after=dt.timedelta(minutes=1),
    )
    request = plain(app, send, "send", on_complete=told).bind("a")

    assert stored(request) == {
        "task_type": "done",
        "queue": "q",
        "priority": -2,
        "max_attempts": 4,
        "backoff": {"initial": 2.0, "maximum": 60.0, "factor": 2.0, "jitter": 0},
        "timeout": "infinity",
        "keep_for": 0.0,
        "run_after": 60.0,
        "on_complete": None,
    }
    assert stored(plain(app, send, "other").options(on_complete=told.options(timeout=5)).bind("a"))[
        "timeout"
    ] == pytest.approx(5)


def test_the_context_of_a_call(app: nq.App) -> None:
    """A context is anything that can be written as JSON; None is as good as none."""
    request = plain(app, send, "send", on_complete=plain(app, done)).bind("a")

    def context(value: Any) -> str | None:
        return request.options(context=value).to_new_task().context

    assert context(Order(5)) == '{"number":5,"at":"2030-01-01T12:00:00+00:00"}'
    assert context(0) == "0"
    assert context([{"é": None}]) == '[{"é":null}]'
    assert context(None) is None
    assert request.options(context=1).options(context=None).to_new_task().context is None


def test_a_context_that_is_not_json(app: nq.App) -> None:
    """A context that cannot be written is refused where it is given; the error says where."""
    task_type = plain(app, send, "send")

    with pytest.raises(ParamsError, match=r"context\.a is nan"):
        task_type.options(context={"a": math.nan})
    with pytest.raises(ParamsError, match="context is of type object"):
        task_type.bind("a").options(context=object())
    with pytest.raises(ParamsError, match="NUL"):
        TaskRequest.by_name("x", context="\0", on_complete="done")


def test_a_context_for_nobody(app: nq.App) -> None:
    """A context that nobody would be told is a mistake, found when the task is to be stored."""
    request = plain(app, send, "send").bind("a").options(context=5)

    with pytest.raises(ValueError, match="send has a context, but no on_complete"):
        request.to_new_task()
    assert request.options(on_complete="done").to_new_task().context == "5"
    with pytest.raises(ValueError, match="no on_complete"):
        request.options(on_complete=None, context=5).to_new_task()


def test_later_options_win(app: nq.App) -> None:
    """An `on_complete` given later takes the place of the declared one; None means nobody."""
    told, other = plain(app, done), plain(app, done, "other")
    task_type = plain(app, send, "send", on_complete=told)
    nobody = task_type.options(context=5).options(on_complete=None)

    assert stored(task_type.options(on_complete=other).bind("a"))["task_type"] == "other"
    assert stored(task_type.bind("a").options(on_complete="third"))["task_type"] == "third"
    assert nobody.bind("a").to_new_task() == attrs.evolve(
        task_type.bind("a").to_new_task(), on_complete=None
    )
    assert stored(nobody.options(on_complete=other).bind("a"))["task_type"] == "other"
    assert stored(task_type.options(priority=5).bind("a"))["task_type"] == "done"


def test_a_chain(app: nq.App) -> None:
    """The one that is told may have one to tell itself, with a context of its own."""
    third = plain(app, done, "third", queue="late")
    second = plain(app, done, "second", on_complete=third)
    first = plain(app, send, "first", on_complete=second.options(context={"n": 2}))
    last = {"task_type": "third", "queue": "late", "priority": 0, "on_complete": None}

    assert stored(first.options(context={"n": 1}).bind("a")) == {
        "task_type": "second",
        "queue": "default",
        "priority": 0,
        "on_complete": last,
        "context": {"n": 2},
    }
    assert stored(first.options(on_complete=second.options(on_complete=None)).bind("a")) == {
        "task_type": "second",
        "queue": "default",
        "priority": 0,
        "on_complete": None,  # said, so it counts, whatever is declared
    }


async def no_result(task_id: int, context: Any) -> None: ...


async def nothing_of_it(x: int) -> None: ...


async def more(task_id: int, context: Any, result: Any, mailbox: str, *, key: int) -> None: ...


async def context_is_another(context: nq.TaskContext, task_id: int, result: Any) -> None: ...


async def late(ctx: nq.TaskContext, task_id: int, context: Nowhere, result: Any) -> None: ...


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (no_result, "done takes no parameter result: it is given task_id, context and result"),
        (nothing_of_it, "done takes no parameter task_id, context, result"),
        (more, "done requires mailbox, key, too"),
        (context_is_another, "done takes no parameter context"),
    ],
)
def test_a_handler_that_cannot_be_told(app: nq.App, handler: Any, reason: str) -> None:
    """A handler without the three parameters is refused where it is named, with what is wrong."""
    told: TaskType[..., Any] = app.task(name="done")(handler)
    task_type = plain(app, send, "send")

    for use in (
        lambda: app.task(on_complete=told),
        lambda: task_type.options(on_complete=told),
        lambda: task_type.bind("a").options(on_complete=told),
    ):
        with pytest.raises(TypeError, match=reason):
            use()


def test_annotations_are_not_looked_up(app: nq.App) -> None:
    """Whom to tell can be said before what the annotations name exists."""
    told = plain(app, late)

    assert stored(plain(app, send, "send", on_complete=told).bind("a"))["task_type"] == "done"


NONSENSE: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda t: t.options(dedup_key="k"), ValueError, "done has dedup_key='k'"),
    (lambda t: t.options(run_at=NOON), ValueError, "done has run_at=.* run_after make sense"),
    (lambda t: t.options(context=5), ValueError, "done has a context, but no on_complete"),
    (lambda t: t.handler, TypeError, r"is the function decorated with @app\.task"),
    (lambda t: t.bind(1, 2, nq.Success(3)), TypeError, "must be a task type or the name"),
    (lambda _: TaskType, TypeError, "must be a task type or the name"),
    (lambda _: False, TypeError, "not False"),
    (lambda _: "", ValueError, "on_complete must be 1 to 255 printable characters"),
]


@pytest.mark.parametrize(("told", "error", "reason"), NONSENSE)
def test_what_makes_no_sense(
    app: nq.App, told: Callable[[Any], Any], error: type[Exception], reason: str
) -> None:
    """What cannot be told, or not so, is refused where it is given."""
    task_type, bad = plain(app, send, "send"), told(plain(app, done))

    for use in (
        lambda: app.task(on_complete=bad),
        lambda: task_type.options(on_complete=bad),
        lambda: TaskRequest.by_name("x", on_complete=bad),
    ):
        with pytest.raises(error, match=reason):
            use()


def test_the_limit_counts_for_contexts_too(app: nq.App) -> None:
    """A context is as long as params may be, in UTF-8; the ones inside count as well."""
    told = plain(app, done)
    request = plain(app, send, "send", on_complete=told).bind("").options(context="é" * 500)
    nested = told.options(on_complete="x", context="é" * 500)

    assert request.to_new_task(1002).context == f'"{"é" * 500}"'
    with pytest.raises(PayloadTooLarge, match="the context of send is 1002 bytes, the limit is"):
        request.to_new_task(1001)
    with pytest.raises(PayloadTooLarge, match=r"the on_complete of send is 1\d+ bytes"):
        request.options(on_complete=nested, context=None).to_new_task(1002)


# -- settlements -------------------------------------------------------------------


@pytest.mark.parametrize("asked", [True, False])
def test_a_settlement_says_whether_to_tell(asked: bool) -> None:
    """Whoever settles a claim, or what somebody else left, knows whether anybody is to be told."""
    claim = Claim(
        fence=Fence(1, 1),
        attempt=1,
        lost=0,
        task_type="x",
        queue="q",
        params="{}",
        on_complete=asked,
    )
    held = Held(
        fence=Fence(1, 1),
        attempt=1,
        lost=0,
        worker_id=UUID(int=1),
        cancel_requested=True,
        keep_for=None,
        on_complete=asked,
    )
    policy = plain(nq.App(), send).policy(claim)
    rng = random.Random(1)

    assert _outcome.settle(claim, _outcome.Succeeded(), policy, rng=rng).on_complete is asked
    assert _outcome.settle_lost(held).on_complete is asked
    assert _outcome.give_back(held).on_complete is asked
