"""How much is searched, and how long that may take."""

from __future__ import annotations

from pathlib import Path

import pytest


for helper in ("sides", "picture", "ledger", "expectations", "transactions", "verbs"):
    pytest.register_assert_rewrite(f"tests.model.{helper}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave time for what is found to be made short, which takes longer than to find it."""
    seconds = 600 + int(config.getoption("--model-examples") or 0)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(seconds))
