"""What tests with processes share."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.own_server import OwnServer, own_server


@pytest.fixture
def server() -> Generator[OwnServer]:
    """A server of the test's own, to be restarted at will."""
    with own_server() as server:
        yield server


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file in which handlers trace their executions."""
    path = tmp_path / "trace"
    path.touch()
    return path
