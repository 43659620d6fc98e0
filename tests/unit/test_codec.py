from __future__ import annotations

import datetime as dt
import enum
import inspect
import json
import math
import sys
import uuid

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from pathlib import PurePosixPath
from types import FrameType
from typing import (
    Annotated,
    Any,
    Literal,
    LiteralString,
    NamedTuple,
    NewType,
    NotRequired,
    TypedDict,
)

import attrs
import pytest

from hypothesis import given, strategies as st

from nursery_queue._core._errors import ParamsError, ResultError
from nursery_queue._json._codec import Params, dump_result


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Shade(enum.StrEnum):
    DARK = "dark"


@attrs.frozen
class Address:
    street: str
    number: int = 1


@dataclass
class Person:
    name: str
    born: dt.date | None = None
    homes: list[Address] = field(default_factory=list[Address])


@attrs.frozen
class Tree:
    value: int
    children: list[Tree] = attrs.field(factory=list["Tree"])


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Point(NamedTuple):
    x: int
    y: str


class Pair(NamedTuple):
    first: bytes
    rest: Pair | None


class Folder(TypedDict):
    name: bytes
    files: list[Folder]


class Chain(NamedTuple):
    rest: Chain | None


class Loop(TypedDict):
    loops: list[Loop]


UserId = NewType("UserId", int)

# What a jsonb column can hold: no NUL, no half characters.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)
ADDRESS = st.builds(Address, TEXT, st.integers())
BY_HINT: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (bool, st.booleans()),
    (str, TEXT),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (Any, JSON),
    (int | None, st.none() | st.integers()),
    (int | str, st.integers() | TEXT),
    (float | None, st.none() | st.floats(allow_nan=False, allow_infinity=False)),
    (bytes, st.binary()),
    (bytes | None, st.none() | st.binary()),
    (dt.datetime, st.datetimes(timezones=st.just(dt.UTC)) | st.datetimes()),
    (dt.date, st.dates()),
    (dt.time, st.times()),
    (dt.timedelta, st.timedeltas(dt.timedelta(days=-90_000), dt.timedelta(days=90_000))),
    (uuid.UUID, st.uuids()),
    (Decimal, st.decimals(allow_nan=False)),
    (Colour, st.sampled_from(Colour)),
    (Size, st.sampled_from(Size)),
    (Shade | None, st.none() | st.sampled_from(Shade)),
    (Right, st.sampled_from([Right.READ, Right.READ | Right.WRITE])),
    (Literal["a", 1], st.sampled_from(["a", 1])),
    (list[int], st.lists(st.integers())),
    (Sequence[bytes], st.lists(st.binary())),
    (set[int], st.sets(st.integers())),
    (frozenset[uuid.UUID], st.frozensets(st.uuids())),
    (tuple[int, str], st.tuples(st.integers(), TEXT)),
    (tuple[Decimal, ...], st.lists(st.decimals(allow_nan=False)).map(tuple)),
    (dict[str, list[bytes]], st.dictionaries(TEXT, st.lists(st.binary()))),
    (dict[uuid.UUID, Colour], st.dictionaries(st.uuids(), st.sampled_from(Colour))),
    (Address, ADDRESS),
    (Address | int, ADDRESS | st.integers()),
    (Person, st.builds(Person, TEXT, st.none() | st.dates(), st.lists(ADDRESS))),
    (Movie, st.fixed_dictionaries({"title": TEXT}, optional={"year": st.integers()})),
    (Point, st.builds(Point, st.integers(), TEXT)),
    (UserId, st.integers()),
    (Annotated[int, "unit"], st.integers()),
    (PurePosixPath, st.just(PurePosixPath("/a/b"))),
    (LiteralString, TEXT),
    (IPv4Address, st.ip_addresses(v=4)),
    (IPv6Address | None, st.none() | st.ip_addresses(v=6)),
    (IPv4Address | IPv6Address, st.ip_addresses()),
    (IPv4Interface | IPv6Interface, st.ip_addresses().map(ip_interface)),
    (IPv4Network | IPv6Network, st.ip_addresses().map(ip_network)),
]


def one(hint: Any) -> Params:
    return Params("mail.send", {"it": hint}, frozenset(["it"]))


@pytest.mark.parametrize(("hint", "values"), BY_HINT, ids=lambda value: str(value)[:30])
def test_what_goes_in_comes_back(hint: Any, values: st.SearchStrategy[Any]) -> None:
    """A value that its annotation describes comes back equal, and of the same type."""
    params = one(hint)

    @given(values)
    def check(value: Any) -> None:
        loaded = params.load(params.dump({"it": value}))["it"]

        assert loaded == value
        assert type(loaded) is type(value)

    check()


@pytest.mark.parametrize(
    "value",
    [
        Tree(1, [Tree(2, [Tree(3)]), Tree(4)]),
        Pair(b"1", Pair(b"2", None)),
        Folder(name=b"/", files=[Folder(name=b"a", files=[])]),
    ],
)
def test_self_referential_classes(value: Any) -> None:
    """A class may refer to itself."""
    params = one(Folder if type(value) is dict else type(value))

    assert params.load(params.dump({"it": value}))["it"] == value


def test_a_self_referential_class_is_not_followed_for_ever() -> None:
    """The hooks of a class that needs itself are built without running into Python's limit."""
    deepest = 0

    def look(frame: FrameType | None, _event: str, _arg: Any) -> None:
        nonlocal deepest
        depth = 0
        while frame := frame and frame.f_back:
            depth += 1
        deepest = max(deepest, depth)

    here = len(inspect.stack())
    before = sys.getprofile()
    sys.setprofile(look)
    try:
        one(Chain)
        one(Loop)
    finally:
        sys.setprofile(before)

    assert deepest - here < 100


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\0\xff", '"AP8="'),
        (dt.timedelta(minutes=1.5), "90.0"),
        (dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC), '"2024-02-29T12:00:00+00:00"'),
        (Decimal("1.10"), '"1.10"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        ({1}, "[1]"),
        (Address("é"), '{"street":"é","number":1}'),
        (Colour.RED, '"red"'),
    ],
)
def test_the_json_other_languages_see(value: Any, text: str) -> None:
    """The encoding is plain enough to be written by hand, and needs no annotation to write."""
    assert one(type(value)).dump({"it": value}) == f'{{"it":{text}}}'
    assert Params.of_unknown("x").dump({"it": value}) == f'{{"it":{text}}}'


@pytest.mark.parametrize(
    ("hint", "text", "reason"),
    [
        (int, "true", "it: expected int, got True"),
        (int, "1.0", "it: expected int, got 1.0"),
        (int, '"1"', "it: expected int, got '1'"),
        (int, "null", "it: expected int, got None"),
        (float, "false", "it: expected float, got False"),
        (float, '"1"', "it: expected float, got '1'"),
        (str, "1", "it: expected str, got 1"),
        (bool, "1", "it: expected bool, got 1"),
        (bool, '"true"', "it: expected bool, got 'true'"),
        (int | None, "true", "it: expected int | None, got True"),
        (list[int], '"12"', r"it: expected an array (list[int]), got '12'"),
        (list[int], "[1, true]", "it[1]: expected int, got True"),
        (tuple[int, str], "[1]", "it: expected an array (tuple[int, str]), got [1]"),
        (dict[str, int], "[]", "it: expected an object (dict[str, int]), got []"),
        (dict[str, int], '{"a": "b"}', "it['a']: expected int, got 'b'"),
        (Address, "[1]", "it: expected an object (Address), got [1]"),
        (Address, "{}", "it.street: required, but missing"),
        (Address, '{"street": 1}', "it.street: expected str, got 1"),
        (Address, '{"street": "a", "zip": 1}', "it: has no field 'zip'"),
        (Tree, '{"value": 1, "children": [{"value": null}]}', "it.children[0].value: expected int"),
        (Movie, '{"year": 1}', "it: expected a field 'title', got {'year': 1}"),
        (Movie, '{"title": "a", "actor": 1}', "it: expected no field 'actor', got"),
        (Point, '["a", "b"]', "it[0]: expected int, got 'a'"),
        (Point, '"ab"', "it: expected an array (Point), got 'ab'"),
        (Movie, "1", "it: expected an object (Movie), got 1"),
        (Movie, '{"title": 1}', "it['title']: expected str, got 1"),
        (Colour, '"green"', "it: expected one of 'red', 'blue' (Colour), got 'green'"),
        (Size, "3", "it: expected one of 1, 2 (Size), got 3"),
        (Size, "true", "it: expected one of 1, 2 (Size), got True"),
        (Literal["a", 1], "true", "it: expected one of 'a', 1, got True"),
        (dt.datetime, '"today"', "it: expected an ISO 8601 datetime, got 'today'"),
        (dt.datetime, "0", "it: expected an ISO 8601 datetime, got 0"),
        (dt.timedelta, '"1"', "it: expected a number of seconds, got '1'"),
        (Decimal, '"x"', "it: expected a decimal number, got 'x'"),
        (uuid.UUID, '"x"', "it: expected a UUID, got 'x'"),
        (bytes, '"é"', "it: expected bytes in base64, got 'é'"),
        (int | uuid.UUID, '"x"', "it: expected int | uuid.UUID, got 'x'"),
        (float, "1" + 400 * "0", "it: OverflowError"),
    ],
)
def test_ill_typed(hint: Any, text: str, reason: str) -> None:
    """The error names the task type and the parameter, what was expected and what came."""
    with pytest.raises(ParamsError) as caught:
        one(hint).load(f'{{"it": {text}}}')

    assert str(caught.value).startswith(f"mail.send: parameter {reason}")


def test_a_long_value_is_shortened() -> None:
    """The error does not repeat a megabyte."""
    with pytest.raises(ParamsError) as caught:
        one(int).load(json.dumps({"it": ["a" * 1_000_000] * 10}))

    assert len(str(caught.value)) < 200


def test_a_float_takes_a_whole_number() -> None:
    """JSON does not tell 1.0 from 1, so a float takes both, and a handler gets a float."""
    value = one(float).load('{"it": 1}')["it"]

    assert type(value) is float


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"b": 1}', "mail.send: parameter a is required, but missing"),
        ('{"a": 1, "c": 2}', "mail.send: there is no parameter 'c'; there are: a, b"),
        ("[]", "mail.send: params cannot be read: they must be a JSON object, not []"),
        ("{", "mail.send: params cannot be read: Expecting property name"),
        ('{"a": NaN}', "mail.send: params cannot be read: NaN is not JSON"),
        ("[" * 100_000, "mail.send: params cannot be read: it is nested too deeply"),
    ],
)
def test_params_that_do_not_fit_the_signature(text: str, reason: str) -> None:
    """Missing and unknown parameters are named; so is what is no object at all."""
    params = Params("mail.send", {"a": int, "b": int}, frozenset(["a"]))

    with pytest.raises(ParamsError) as caught:
        params.load(text)

    assert str(caught.value).startswith(reason)


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


NOT_JSON: list[tuple[Any, str]] = [
    (math.nan, "it is nan, which JSON does not have"),
    ([1, {"a": -math.inf}], "it[1].a is -inf, which JSON does not have"),
    ("a\0b", "it contains a NUL character"),
    ("\ud800", "it contains half a character (the lone surrogate U+D800)"),
    ({"a": ["é", "\udfff"]}, "it.a[1] contains half a character"),
    ({"a\0": 1}, "a key in it contains a NUL character"),
    ({"a": {1: 2}}, "it.a: a key is of type int; keys in JSON are strings"),
    (object(), "it is of type object, which is not JSON"),
    ([pytest.raises], "it[0] is of type function, which is not JSON"),
    (10**5000, "it is too large a number"),
    (cyclic(), "it: nested too deeply, or contains itself"),
    (nested(100_000), "it: nested too deeply, or contains itself"),
]


@pytest.mark.parametrize(("value", "reason"), NOT_JSON, ids=[reason for _, reason in NOT_JSON])
def test_not_json(value: Any, reason: str) -> None:
    """What PostgreSQL's jsonb does not take is refused, and the message says which part it is."""
    with pytest.raises(ParamsError) as caught:
        one(Any).dump({"it": value})

    assert str(caught.value).startswith(f"mail.send: parameter {reason}")
    with pytest.raises(ResultError) as failed:
        dump_result(value, Any, "mail.send")

    assert str(failed.value).startswith(f"mail.send: {reason.replace('it', 'result', 1)}")


@given(JSON | st.floats() | st.text(), st.text())
def test_what_is_written_can_be_stored(value: Any, name: str) -> None:
    """Whatever the value, it is refused, or it is text that is JSON and that jsonb takes."""
    try:
        text = Params.of_unknown("x").dump({name: value})
    except ParamsError:
        return

    stored = json.loads(text)
    assert stored == {name: value}
    assert not {"\0"}.intersection(str(stored))
    text.encode()


def test_an_escape_that_looks_like_nul() -> None:
    """A backslash and the letters u0000 are text like any other."""
    params = one(str)

    assert params.load(params.dump({"it": "\\u0000"}))["it"] == "\\u0000"


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (list[str], b"abc"),
        (dict[str, list[str]], {"a": "abc"}),
        (set[int], {"a": 1}),
        (dt.datetime, 5j),
        (Address, object()),
    ],
)
def test_a_value_its_annotation_cannot_write(hint: Any, value: Any) -> None:
    """A value that is not at all what its annotation says is refused where it is written."""
    with pytest.raises(ParamsError, match=r"mail\.send: parameter it: .*cannot be written as"):
        one(hint).dump({"it": value})


@pytest.mark.parametrize(("text", "value"), [("0.1", "0.1"), ("5", "5"), ('"0.10"', "0.10")])
def test_a_decimal_written_as_a_number(text: str, value: str) -> None:
    """Others may write a decimal as a number; what is meant is what is written."""
    assert str(one(Decimal).load(f'{{"it": {text}}}')["it"]) == value


def test_names_that_are_not_strings() -> None:
    """A mapping for params must have strings as keys, also at the top."""
    names: dict[Any, Any] = {1: 2}

    with pytest.raises(ParamsError, match="a key is of type int"):
        Params.of_unknown("x").dump(names)


@pytest.mark.parametrize("hint", [object, Any])
def test_an_annotation_that_says_nothing(hint: Any) -> None:
    """Without an annotation JSON comes as it is."""
    assert one(hint).load('{"it": [1, {"a": null}]}')["it"] == [1, {"a": None}]


@attrs.frozen
class Same:
    street: str


@pytest.mark.parametrize("hint", [complex, Address | Same, type])
def test_an_annotation_json_cannot_be_converted_to(hint: Any) -> None:
    """An annotation without a way back is refused before anything is stored."""
    with pytest.raises(ParamsError, match=r"mail\.send: parameter it: no way from JSON to"):
        one(hint)


def test_a_result_of_none() -> None:
    """None is no text at all."""
    assert dump_result(None, str, "x") is None


def test_results_follow_the_annotation() -> None:
    """A result is written as its annotation says, or as what it is if there is none."""
    assert dump_result((1, b"a"), tuple[int, bytes], "x") == '[1,"YQ=="]'
    assert dump_result(Address("a"), type(None), "x") == '{"street":"a","number":1}'
    assert dump_result([Address("a")], Any, "x") == '[{"street":"a","number":1}]'
    assert dump_result(5, str, "x") == "5"
