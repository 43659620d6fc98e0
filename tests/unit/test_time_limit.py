"""What becomes of a run in which a test hangs."""

from __future__ import annotations

import pytest


HANGS = """
import trio

def test_before(): pass

def test_hangs():
    trio.run(trio.sleep_forever)

def test_after():
    trio.run(trio.sleep, 0)
"""


def test_a_hang_harms_only_its_own_test(
    pytester: pytest.Pytester, pytestconfig: pytest.Config
) -> None:
    """A test that hangs inside of trio fails alone; the others run on as if it had not been."""
    pytester.makepyfile(HANGS)
    method = str(pytestconfig.getini("timeout_method"))
    options = ["-p", "no:cacheprovider", "-p", "no:randomly", "-n", "1", "-o", "timeout=5"]
    result = pytester.runpytest_subprocess(*options, "-o", f"timeout_method={method}")

    result.assert_outcomes(passed=2, failed=1)
