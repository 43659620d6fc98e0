"""What a key may be, how it is declared, and what calls get."""

from __future__ import annotations

import datetime as dt
import enum
import uuid

from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import pytest

from nursery_queue._client._context import TaskContext
from nursery_queue._core._debounce import Debounce
from nursery_queue._core._declaration import KEY_AS_DECLARED
from nursery_queue._core._errors import ParamsError
from nursery_queue._core._keys import as_key
from nursery_queue._declare._app import App
from nursery_queue._declare._task_type import TaskRequest


ID = uuid.UUID(int=7)


class Region(enum.Enum):
    EU = "eu"


async def call(customer_id: int, url: str = "x") -> None: ...


async def serve(ctx: TaskContext, region: Region = Region.EU, since: dt.date | None = None) -> None:
    del ctx


@pytest.fixture
def app() -> App:
    return App()


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("c-17", "c-17"),
        (17, "17"),
        (-1, "-1"),
        (True, "true"),
        (1.5, "1.5"),
        (1e20, "100000000000000000000"),
        (Decimal("1.50"), "1.50"),
        (ID, str(ID)),
        (Region.EU, "eu"),
        (dt.date(2030, 1, 31), "2030-01-31"),
        (PurePosixPath("/a/b"), "/a/b"),
        (None, None),
        ("é" * 100, "é" * 100),
    ],
)
def test_what_makes_a_key(value: Any, key: str | None) -> None:
    """Text is as it is, other values are written as in params, and None is no key."""
    assert as_key(value) == key


@pytest.mark.parametrize(
    ("value", "error", "reason"),
    [
        ("", ValueError, "1 to 200 bytes"),
        ("x" * 201, ValueError, "at most 200 bytes, not 201"),
        ("é" * 101, ValueError, "bytes, and no control"),
        ("a\0", ValueError, "control characters"),
        (KEY_AS_DECLARED, ValueError, "control characters"),
        ("\ud800", ValueError, "1 to 200 bytes"),
        (float("nan"), TypeError, "not nan"),
        (b"a", TypeError, "must be text"),
        ([1], TypeError, "must be text"),
        ({}, TypeError, "must be text"),
        (object(), TypeError, "must be text"),
    ],
)
def test_what_makes_none(value: Any, error: type[Exception], reason: str) -> None:
    """Anything else is refused, with what a key is."""
    with pytest.raises(error, match=reason):
        as_key(value)


@pytest.mark.parametrize(
    ("args", "kwargs", "key"),
    [((7,), {}, "7"), ((), {"customer_id": 8}, "8"), ((7, "y"), {}, "7")],
)
def test_a_declared_parameter(
    app: App, args: tuple[Any, ...], kwargs: dict[str, Any], key: str
) -> None:
    """The value of the parameter is the key, however it is given."""
    task_type = app.task(key="customer_id")(call)

    assert task_type.bind(*args, **kwargs).to_new_task().key == key


def test_the_default_of_the_parameter(app: App) -> None:
    """An argument that is left out makes the key that its default makes; None makes none."""
    by_region = app.task(name="a", key="region")(serve)
    by_date = app.task(name="b", key="since")(serve)

    assert by_region.bind().to_new_task().key == "eu"
    assert by_date.bind().to_new_task().key is None
    assert by_date.bind(since=dt.date(2030, 1, 1)).to_new_task().key == "2030-01-01"
    assert (by_region.declaration().key_parameter, by_region.declaration().key_default) == (
        "region",
        "eu",
    )
    assert by_date.declaration().key_default is None


def test_a_function(app: App) -> None:
    """It is called with all arguments by name, defaults too, and workers store no more of it."""
    seen: list[dict[str, Any]] = []

    def key(**values: Any) -> int:
        seen.append(values)
        return int(values["customer_id"])

    task_type = app.task(key=key)(call)

    assert task_type.bind(7).to_new_task().key == "7"
    assert seen == [{"customer_id": 7, "url": "x"}]
    assert task_type.declaration().key_parameter is None


def test_a_function_of_a_handler_with_a_context(app: App) -> None:
    """The context is none of the arguments."""

    def key(region: Region, **rest: Any) -> str:
        return f"{region.value} {len(rest)}"

    task_type = app.task(key=key)(serve)

    assert task_type.bind().to_new_task().key == "eu 1"


def test_the_option_counts_more(app: App) -> None:
    """A key that is given with the call counts, also none, and the declared one is not asked."""

    def refuse(**_: Any) -> str:
        raise AssertionError

    task_type = app.task(key=refuse)(call)

    assert task_type.options(key="a").bind(7).to_new_task().key == "a"
    assert task_type.options(key=None).bind(7).to_new_task().key is None
    assert task_type.options(key="a").bind(7).options(key=9).to_new_task().key == "9"


def test_without_a_declaration(app: App) -> None:
    """A task type that declares none gives none, and a call by name leaves it to the store."""
    assert app.task(call).bind(7).to_new_task().key is None
    assert TaskRequest.by_name("call", {"customer_id": 7}).to_new_task().key == KEY_AS_DECLARED


def test_by_name_with_the_app(app: App) -> None:
    """The App knows the key of a call by name, also where it declares a function."""
    app.task(name="a", key="customer_id")(call)
    app.task(name="b", key="{customer_id} {url}".format)(call)
    app.task(name="c")(call)

    def key(name: str, **params: Any) -> str | None:
        return app.declared(TaskRequest.by_name(name, params)).to_new_task().key

    assert key("a", customer_id=7) == "7"
    assert key("a", odd=1) is None
    assert key("b", customer_id=7) == "7 x"
    assert key("c", customer_id=7) is None
    with pytest.raises(ParamsError, match="odd"):
        key("b", odd=1)


@pytest.mark.parametrize(
    ("key", "error", "reason"),
    [
        ("customer", ValueError, "key='customer' is no parameter; there are: customer_id, url"),
        ("ctx", ValueError, "is no parameter"),
        (7, TypeError, "name of a parameter or a function, not 7"),
        (str, TypeError, "name of a parameter or a function"),
    ],
)
def test_what_cannot_be_declared(app: App, key: Any, error: type[Exception], reason: str) -> None:
    """A key that is no parameter is refused at the declaration, which leaves nothing behind."""
    with pytest.raises(error, match=reason):
        app.task(name="call", key=key)(call)

    assert "call" not in app
    app.task(name="call", key="customer_id")(call)


def test_a_default_that_makes_no_key(app: App) -> None:
    """A default that every call without the argument would be refused for is refused at once."""

    async def visit(region: str = "") -> None: ...

    with pytest.raises(ValueError, match="the key of a task visit must have 1 to 200 bytes"):
        app.task(name="visit", key="region")(visit)


def test_an_annotation_that_is_not_there_yet(app: App) -> None:
    """A declaration does not need the default's annotation; a call does."""

    async def visit(region: Any = None) -> None: ...

    visit.__annotations__["region"] = "Later"
    task_type = app.task(name="visit", key="region")(visit)

    assert task_type.declaration().key_default is None
    with pytest.raises(ParamsError, match="Later"):
        task_type.bind()


def test_a_parameter_among_others(app: App) -> None:
    """A handler that takes any names may have its key in one of them."""

    async def anything(**params: int) -> None: ...

    assert app.task(key="x")(anything).bind(x=3).to_new_task().key == "3"


@pytest.mark.parametrize("value", ["", "x" * 201])
def test_a_value_that_is_no_key(app: App, value: str) -> None:
    """The call is refused where it is made, with the task type."""
    task_type = app.task(name="call", key="url")(call)

    with pytest.raises(ValueError, match="key of a task call must have"):
        task_type.bind(1, value)
    with pytest.raises(ValueError, match="key must have"):
        task_type.options(key=value)


# -- debounce and dedup_for --------------------------------------------------------------------


def test_a_debounce() -> None:
    """It takes seconds and timedeltas, and compares by them."""
    assert Debounce(dt.timedelta(minutes=1), 90) == Debounce(60, max_wait=90.0)
    assert Debounce(1).max_wait is None


@pytest.mark.parametrize(
    ("args", "error", "reason"),
    [
        ((0,), ValueError, "wait must be more than 0"),
        ((-1,), ValueError, "not -1"),
        ((float("nan"),), ValueError, "not nan"),
        (("1",), TypeError, "'1'"),
        ((1, 0), ValueError, "max_wait must be more than 0"),
        ((2, 1), ValueError, "max_wait must not be less than wait: 1 < 2"),
    ],
)
def test_no_debounce(args: tuple[Any, ...], error: type[Exception], reason: str) -> None:
    """Times out of their bounds are refused, with the value."""
    with pytest.raises(error, match=reason):
        Debounce(*args)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"dedup_for": 60}, ValueError, "call has dedup_for, but no dedup_key"),
        ({"debounce": Debounce(1)}, ValueError, "call has debounce, but no dedup_key"),
        ({"dedup_key": "k", "dedup_for": 0}, ValueError, "dedup_for must be more than 0"),
        ({"dedup_key": "k", "debounce": 5}, TypeError, "must be a Debounce, not 5"),
        (
            {"dedup_key": "k", "debounce": Debounce(1), "dedup_for": 1},
            ValueError,
            "dedup_for and debounce",
        ),
        (
            {"dedup_key": "k", "debounce": Debounce(1), "run_after": 1},
            ValueError,
            "debounce and run_after",
        ),
    ],
)
def test_what_does_not_go_together(
    app: App, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    """Options that make no sense are refused before anything is stored."""
    task_type = app.task(name="call")(call)

    with pytest.raises(error, match=reason):
        task_type.options(**options).bind(1).to_new_task()


def test_they_can_be_taken_back(app: App) -> None:
    """None takes an earlier option back."""
    task_type = app.task(name="call")(call).options(dedup_key="k", debounce=Debounce(1))
    new = task_type.options(debounce=None, dedup_for=5).bind(1).to_new_task()

    assert (new.debounce, new.dedup_for) == (None, 5.0)
