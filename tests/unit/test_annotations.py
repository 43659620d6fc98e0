"""Annotations that are nearly something else: each works, or is refused where it is declared.

No postponed annotations here: a class that names itself does so in quotes.
"""

import dataclasses
import datetime as dt
import enum
import uuid

from decimal import Decimal
from ipaddress import IPv4Address
from typing import Any, Literal, Optional

import attrs
import pytest

from nursery_queue._core._errors import ParamsError
from nursery_queue._json._codec import Params


class AsFloat(float, enum.Enum):
    A = 1.5


class AsBytes(bytes, enum.Enum):
    A = b"a"


class AsDate(dt.date, enum.Enum):
    A = (2020, 1, 1)


class AsDecimal(Decimal, enum.Enum):
    A = "1.5"


class AsDelta(dt.timedelta, enum.Enum):
    A = 1


class AsStr(str, enum.Enum):  # noqa: UP042  # another than a StrEnum
    A = "a"


class Shade(enum.StrEnum):
    DARK = "dark"

    @classmethod
    def _missing_(cls, value: object) -> "Shade | None":
        return cls.DARK if value == "black" else None


class Number(enum.IntEnum):
    ONE = 1


class Of(enum.Enum):
    UUID = uuid.UUID(int=1)
    BYTES = b"x"
    DATE = dt.date(2020, 1, 1)
    TUPLE = (1, 2)
    NONE = None


ENUMS: list[Any] = [AsFloat, AsBytes, AsDate, AsDecimal, AsDelta, AsStr, Shade, Number, Of]


class Unwritable(enum.Enum):
    A = 1j


@dataclasses.dataclass
class Node:
    next: Optional["Node"] = None
    ids: list[uuid.UUID] = dataclasses.field(default_factory=list[uuid.UUID])


@attrs.define
class Knot:
    next: Optional["Knot"] = None


@dataclasses.dataclass
class Holder:
    price: AsFloat
    shade: Literal[Shade.DARK]
    more: dict[str, list[AsFloat | None]]


@dataclasses.dataclass
class Keyed:
    by_number: dict[int, str]


def there_and_back(hint: Any, value: Any) -> Any:
    params = Params("t", {"it": hint})
    return params.load(params.dump({"it": value}))["it"]


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        *(
            (type(member), member)
            for kind in (AsFloat, AsBytes, AsDate, AsDecimal)
            for member in kind
        ),
        *(
            (type(member), member)
            for kind in (AsDelta, AsStr, Shade, Number, Of)
            for member in kind
        ),
        (Any, Shade.DARK),
        (Literal[Shade.DARK], Shade.DARK),
        (Literal[AsStr.A] | None, AsStr.A),
        (list[Literal[Number.ONE]], [Number.ONE]),
        (Literal[b"x", "y"], b"x"),
        (dict[Shade, int], {Shade.DARK: 1}),
        (dict[Literal["a"], int], {"a": 1}),
        (dict[uuid.UUID, int], {uuid.UUID(int=1): 1}),
        (dict[int | str, int], {"a": 1}),
        (dict[Any, int], {"a": 1}),
        (Node, Node(Node(), [uuid.UUID(int=1)])),
        (Knot, Knot(Knot())),
        (Holder, Holder(AsFloat.A, Shade.DARK, {"a": [AsFloat.A, None]})),
        (dt.timedelta, dt.timedelta.max),
        (dt.timedelta, dt.timedelta.min),
        (dt.timedelta, dt.timedelta(days=100_000, microseconds=1)),
        (dt.timedelta, dt.timedelta(days=-400_000, microseconds=999_999)),
    ],
    ids=repr,
)
def test_it_comes_back_as_it_was(hint: Any, value: Any) -> None:
    """Equal, and of the class that the annotation says."""
    came = there_and_back(hint, value)
    assert came == value
    assert hint is Any or type(came) is type(value)


@pytest.mark.parametrize("kind", [AsFloat, AsBytes, AsDate, AsDecimal, AsDelta])
def test_an_enum_takes_nothing_but_its_members(kind: Any) -> None:
    """Whatever it is made of, what is no member's value is refused."""
    for text in ('{"it": 99.0}', '{"it": "99"}', '{"it": 1}'):
        with pytest.raises(ParamsError, match="expected one of"):
            Params("t", {"it": kind}).load(text)


def test_an_enum_of_strings_may_know_more_than_its_values() -> None:
    """What its own `_missing_` takes is taken."""
    assert Params("t", {"it": Shade}).load('{"it": "black"}') == {"it": Shade.DARK}


def subclass(base: type[Any]) -> Any:
    return type("Mine", (base,), {})


@pytest.mark.parametrize(
    "base",
    [float, bytes, dt.date, dt.datetime, dt.time, dt.timedelta, Decimal, uuid.UUID, IPv4Address],
)
def test_a_subclass_is_not_taken_for_its_base(base: type[Any]) -> None:
    """The handler would get something else than it says: so it is refused, with what to write."""
    with pytest.raises(
        ParamsError, match=f"no way from JSON to Mine: annotate it with.* {base.__name__}"
    ):
        Params("t", {"it": subclass(base)})


@pytest.mark.parametrize(
    ("hint", "reason"),
    [
        (dict[int, str], "keys in JSON are strings, and int"),
        (dict[tuple[int, int], str], r"keys in JSON are strings, and tuple\[int, int\]"),
        (dict[bool | None, str], "keys in JSON are strings"),
        (dict[Number, str], "keys in JSON are strings, and Number"),
        (list[dict[float, str]], "keys in JSON are strings"),
        (Keyed, "keys in JSON are strings"),
        (Unwritable, "Unwritable"),
        (Literal[Unwritable.A], "Unwritable"),
    ],
)
def test_what_no_json_can_fit_is_refused(hint: Any, reason: str) -> None:
    """At the declaration, not at the first call."""
    with pytest.raises(ParamsError, match=reason):
        Params("t", {"it": hint})
