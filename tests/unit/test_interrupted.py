"""A signal's `KeyboardInterrupt` or `SystemExit` is told from one that code has raised."""

from __future__ import annotations

import signal
import sys

from collections.abc import Callable, Generator
from types import FrameType
from typing import NoReturn

import pytest
import trio

from nursery_queue._trio._signals import interrupted


@pytest.fixture
def sigterm() -> Generator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def caught(fn: Callable[[], object]) -> BaseException:
    try:
        fn()
    except BaseException as exc:  # noqa: BLE001  # whatever it is, it is what the test wants
        return exc
    raise AssertionError


def by_hand() -> NoReturn:
    raise KeyboardInterrupt


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def exits() -> NoReturn:
    try:
        ctrl_c()
    except KeyboardInterrupt:
        sys.exit(130)
    raise AssertionError


def hides() -> NoReturn:
    try:
        ctrl_c()
    except KeyboardInterrupt:
        raise ValueError("hidden") from None
    raise AssertionError


def groups() -> NoReturn:
    raise BaseExceptionGroup("both", [ValueError(), BaseExceptionGroup("", [caught(ctrl_c)])])


@pytest.mark.parametrize("fn", [ctrl_c, exits, hides, groups])
def test_a_real_one(fn: Callable[[], object]) -> None:
    """Under trio, a Ctrl-C is known, also in a group and when something else came of it."""
    found: list[bool] = []

    async def main() -> None:
        found.append(interrupted(caught(fn)))
        await trio.lowlevel.checkpoint()

    signal.signal(signal.SIGINT, signal.default_int_handler)
    trio.run(main)

    assert found == [True]


class Terminator:
    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    def method(self, _number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt


def leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(3)


@pytest.mark.parametrize(
    "handler",
    [Terminator(), Terminator().method, leave],
    ids=["object", "method", "function"],
)
def test_a_handler_of_the_program(
    sigterm: None, handler: Callable[[int, FrameType | None], object]
) -> None:
    """So is what a signal handler of the program's own raises, of whatever kind it is."""
    signal.signal(signal.SIGTERM, handler)

    assert interrupted(caught(lambda: signal.raise_signal(signal.SIGTERM)))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
def test_what_code_raises(error: BaseException) -> None:
    """What code raises is none, alone, in a group or as a cause."""

    def fail() -> NoReturn:
        raise error

    def caused() -> NoReturn:
        raise ValueError from error

    assert not interrupted(caught(fail))
    assert not interrupted(caught(caused))
    assert not interrupted(BaseExceptionGroup("", [caught(fail)]))
    assert not interrupted(caught(by_hand))
