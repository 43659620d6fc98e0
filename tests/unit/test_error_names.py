"""Errors are called by the names under which they are imported."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
import re
import traceback
import typing

import pytest

import nursery_queue as nq


PRIVATE = re.compile(r"nursery_queue\b.*\._")
# Caught where they are raised, shown by the command line without their names, never raised, or
# only in our own tests.
NEVER_SHOWN = {
    "BenchFailed",
    "IllegalEdgeError",
    "NoThread",
    "OutputClosedError",
    "ProblemError",
    "TryLater",
    "_NotFiredError",
    "_RollBackError",
    "_TooSlow",
}
ERRORS = {
    name: each
    for name, each in vars(nq).items()
    if not name.startswith("_") and isinstance(each, type) and issubclass(each, BaseException)
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_its_public_name(name: str) -> None:
    """Whatever prints it says `nursery_queue.` and the name, and not where it is written."""
    error = ERRORS[name](7)
    text = "".join(traceback.format_exception(error))

    assert text.startswith(f"nursery_queue.{name}: {error}\n")
    assert repr(ERRORS[name]) == f"<class 'nursery_queue.{name}'>"


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_can_be_copied_and_sent(name: str) -> None:
    """It goes through pickle and copy as it is, and its annotations can be resolved."""
    error = ERRORS[name](7)
    error.add_note("by hand")

    sent = pickle.loads(pickle.dumps(error))  # noqa: S301  # it is our own
    for same in (sent, copy.copy(error), copy.deepcopy(error)):
        assert type(same) is type(error)
        assert (str(same), vars(same)) == (str(error), vars(error))
    assert isinstance(typing.get_type_hints(ERRORS[name]), dict)
    assert isinstance(typing.get_type_hints(ERRORS[name].__init__), dict)


def test_no_error_shows_where_it_is_written() -> None:
    """Causes and stored error types name no private module, also those of our inner errors."""
    hidden: set[str] = set()
    for info in pkgutil.walk_packages(nq.__path__, "nursery_queue."):
        if not info.name.endswith("__main__"):
            for name, each in vars(importlib.import_module(info.name)).items():
                if isinstance(each, type) and issubclass(each, BaseException):
                    hidden |= {name} if PRIVATE.match(each.__module__) else set()

    assert hidden == NEVER_SHOWN
