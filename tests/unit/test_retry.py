from __future__ import annotations

import datetime as dt
import math
import random

from typing import Any

import attrs
import pytest

from hypothesis import example, given, strategies as st

from nursery_queue._core._checks import LONGEST
from nursery_queue._core._retry import ONCE, Backoff, RetryPolicy, exponential


@st.composite
def policies(draw: st.DrawFn) -> RetryPolicy:
    initial = draw(st.floats(0, LONGEST, exclude_min=True))
    return RetryPolicy(
        initial=initial,
        maximum=draw(st.floats(initial, LONGEST)),
        factor=draw(st.floats(1, 1000)),
        jitter=draw(st.floats(0, 1)),
    )


@given(policies(), st.integers(1, 2**31 - 1), st.randoms(use_true_random=False))
@example(RetryPolicy(initial=5e-324, maximum=LONGEST, factor=1000), 2**31 - 1, random.Random(1))
@example(RetryPolicy(initial=1e-9, maximum=LONGEST, factor=1.0000001), 2**31 - 1, random.Random(1))
def test_the_wait_is_within_its_bounds(policy: RetryPolicy, n: int, rng: random.Random) -> None:
    """Whatever the policy and the attempt, the wait is within jitter of t, and t within maximum."""
    t = exponential(policy.initial, policy.factor, policy.maximum, n)
    wait = policy.delay(n, rng)

    assert 0 < t <= policy.maximum
    slack = 1e-9 * t
    assert t * (1 - policy.jitter) - slack <= wait <= t + slack


@given(policies(), st.integers(1, 60))
def test_the_formula(policy: RetryPolicy, n: int) -> None:
    """T is min(maximum, initial * factor ** (n - 1))."""
    t = exponential(policy.initial, policy.factor, policy.maximum, n)

    assert t == pytest.approx(min(policy.maximum, policy.initial * policy.factor ** (n - 1)))


@given(policies(), st.integers(1, 1000))
@example(RetryPolicy(initial=2.3e-309, maximum=1.0, factor=4), 512)
def test_it_never_gets_shorter(policy: RetryPolicy, n: int) -> None:
    """The wait before jitter grows, or stays at its maximum."""
    this, following = (
        exponential(policy.initial, policy.factor, policy.maximum, m) for m in (n, n + 1)
    )

    assert following >= this * (1 - 1e-12)


def test_the_defaults() -> None:
    """The waits of the default policy, without jitter, are those the documentation gives."""
    policy = RetryPolicy(jitter=0)
    waits = [policy.delay(n, random.Random(1)) for n in range(1, 9)]

    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert RetryPolicy().max_attempts == 5
    assert RetryPolicy().jitter == 0.5


def test_jitter_spreads() -> None:
    """With jitter the waits fill their range evenly; the generator is the caller's."""
    rng = random.Random(5)
    waits = [RetryPolicy(jitter=0.5).delay(3, rng) for _ in range(2000)]

    assert min(waits) < 2.1
    assert max(waits) > 3.9
    assert sum(waits) / len(waits) == pytest.approx(3, abs=0.1)
    assert RetryPolicy().delay(3, random.Random(5)) == waits[0]


def test_once() -> None:
    """No retry is one attempt."""
    assert ONCE.max_attempts == 1


def test_timedeltas() -> None:
    """Times may be timedeltas, and are seconds from then on."""
    policy = RetryPolicy(initial=dt.timedelta(seconds=2), maximum=dt.timedelta(minutes=2))

    assert (policy.initial, policy.maximum) == (2.0, 120.0)


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["initial", "maximum", "factor", "max_attempts"])
def test_bad_numbers(name: str, bad: Any) -> None:
    """A number out of its bounds is refused at construction, by name."""
    with pytest.raises((ValueError, TypeError), match=name):
        RetryPolicy(**{name: bad})


@pytest.mark.parametrize("bad", [2, -0.1, math.nan, math.inf])
def test_bad_jitter(bad: float) -> None:
    """Jitter is a share, from nothing to everything."""
    with pytest.raises(ValueError, match="jitter must be between 0 and 1"):
        RetryPolicy(jitter=bad)


@pytest.mark.parametrize("name", ["initial", "maximum", "factor", "jitter", "max_attempts"])
@pytest.mark.parametrize("bad", ["1", None, True])
def test_what_is_no_number(name: str, bad: Any) -> None:
    """What is no number is a TypeError."""
    with pytest.raises(TypeError, match=name):
        RetryPolicy(**{name: bad})


def test_the_maximum_is_the_maximum() -> None:
    """The first wait cannot be longer than the longest."""
    with pytest.raises(ValueError, match=r"maximum \(1.0\) must not be less than initial \(2.0\)"):
        RetryPolicy(initial=2, maximum=1)


@given(st.integers(1, 10**9), st.randoms(use_true_random=False))
def test_siblings_are_restarted_for_ever(failures: int, rng: random.Random) -> None:
    """However often a loop has failed, it waits between nothing and the maximum."""
    assert 0.125 <= Backoff().delay(failures, rng) <= 30


def test_the_maximum_follows() -> None:
    """A maximum that was not given is at least the first wait, whatever that becomes."""
    long = RetryPolicy(initial=600)

    assert (RetryPolicy().maximum, long.maximum) == (60, 600)
    assert attrs.evolve(RetryPolicy(), initial=600) == long == RetryPolicy(initial=600, maximum=600)
    assert attrs.evolve(long, initial=1) == RetryPolicy()
    assert attrs.evolve(RetryPolicy(maximum=700), initial=600).maximum == 700
    assert hash(long) == hash(RetryPolicy(initial=600, maximum=600))
    assert "maximum=600" in repr(long)
    with pytest.raises(ValueError, match="must not be less than initial"):
        RetryPolicy(initial=600, maximum=60)
    with pytest.raises(ValueError, match="must not be less than initial"):
        attrs.evolve(long, maximum=9)
