"""The reference has every public name, once, and its pages say only what the code says."""

from __future__ import annotations

import re

from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import nursery_queue
import nursery_queue.testing

from tests.docs.pages import ROOT


PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
ENTRY = re.compile(r"^\.\. (?:auto|py:)\w+:: nursery_queue\.([\w.]+)", re.MULTILINE)
EXCLUDED = re.compile(
    r"^\.\. auto\w+:: nursery_queue\.(\w+).*(?:\n   :.*)*?\n   :exclude-members: (.*)$",
    re.MULTILINE,
)


def public_names(module: ModuleType, prefix: str = "") -> list[str]:
    """Return every name that may be imported from *module*, its modules aside."""
    return [prefix + name for name in module.__all__]


def test_every_public_name_has_one_entry() -> None:
    """No public name is missing from the reference, none is there twice, none is made up."""
    entries = Counter(name for page in PAGES for name in ENTRY.findall(page.read_text()))

    public = public_names(nursery_queue) + public_names(nursery_queue.testing, "testing.")
    assert entries == Counter(public)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_left_out_is_there(page: Path) -> None:
    """A method that the reference leaves out, as it is for the package alone, exists."""
    for name, left_out in EXCLUDED.findall(page.read_text()):
        for method in left_out.split(", "):
            assert hasattr(getattr(nursery_queue, name), method), f"{name}.{method}"
