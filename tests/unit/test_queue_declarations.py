"""Queues that code declares."""

from __future__ import annotations

import re

from typing import Any, cast

import pytest

import nursery_queue as nq


def test_what_is_declared() -> None:
    """An app knows its queues by name, and of each what was given and nothing else."""
    app = nq.App()
    app.queue("calls", max_running=50, rate=nq.Rate(1000, per=60), notify=False)
    app.queue("mail")
    app.queue("open", max_running=None, max_running_per_key=2, rate_per_key=None)

    assert app.queues == {
        "calls": {"max_running": 50, "rate": nq.Rate(1000, per=60), "notify": False},
        "mail": {},
        "open": {"max_running": None, "max_running_per_key": 2, "rate_per_key": None},
    }
    assert nq.App().queues == {}
    with pytest.raises(TypeError, match="assignment"):
        cast("dict[str, Any]", app.queues)["new"] = {}


def test_twice() -> None:
    """One app declares a queue once, the same or not, and the error says where it is."""
    app = nq.App()
    app.queue("calls", max_running=50)

    with pytest.raises(ValueError, match="'calls' is declared twice") as caught:
        app.queue("calls", max_running=50)

    assert len(re.findall(rf"{re.escape(__file__)}:\d+", str(caught.value))) == 2
    nq.App().queue("calls", max_running=50)
    assert app.queues == {"calls": {"max_running": 50}}


@pytest.mark.parametrize(
    ("name", "given", "error", "said"),
    [
        ("", {}, ValueError, "queue must be 1 to 255 printable"),
        ("a\nb", {}, ValueError, "queue must be"),
        (7, {}, TypeError, "queue must be a string"),
        ("calls", {"max_running": -1}, ValueError, "max_running must be between 0"),
        ("calls", {"max_running": 1.5}, TypeError, "max_running must be a whole number"),
        ("calls", {"max_running_per_key": -1}, ValueError, "max_running_per_key must be"),
        ("calls", {"rate": 5}, TypeError, "rate must be a Rate"),
        ("calls", {"rate_per_key": "5/60"}, TypeError, "rate_per_key must be a Rate"),
        ("calls", {"notify": None}, TypeError, "notify must be True or False"),
        ("calls", {"paused": True}, TypeError, "paused"),
    ],
)
def test_what_cannot_be_declared(
    name: Any, given: dict[str, Any], error: type[Exception], said: str
) -> None:
    """What makes no sense is refused where it is written, and nothing of it is declared."""
    app = nq.App()

    with pytest.raises(error, match=said):
        app.queue(name, max_running_per_key=given.pop("max_running_per_key", 3), **given)

    assert app.queues == {}
