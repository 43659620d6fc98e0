"""Applications of examples/, served on a database with their tables."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from examples.__main__ import TABLES
from tests.examples.serving import Site, served, url
from tests.support.command_line import rows


@pytest.fixture
def tables(migrated: str) -> str:
    """DSN, as a URL, of a database in which all tables are that the applications need."""
    rows(migrated, TABLES.read_text(encoding="utf-8"))
    return url(migrated)


@pytest.fixture
def site(request: pytest.FixtureRequest, tables: str) -> Generator[Site]:
    """The application that the test's parameter names, while it is being served."""
    with served(request.param, tables) as site:
        yield site
