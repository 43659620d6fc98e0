"""Params, results and exceptions that do not fit, on both stores."""

from __future__ import annotations

import pytest

import nursery_queue as nq

from tests.support.workers import outcomes


class Mute(Exception):  # no error of ours
    def __str__(self) -> str:
        msg = "no words"
        raise RuntimeError(msg)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"width": "wide"}, "width"),
        ({"width": 1, "height": 2}, "height"),
        ({}, "width"),
        ({"width": None}, "width"),
    ],
)
async def test_params_that_do_not_fit(
    app: nq.App, either: nq.Client, params: dict[str, object], message: str
) -> None:
    """Params that do not fit the handler fail the task at once, and the error names which."""
    ran: list[int] = []

    @app.task(name="resize")
    async def resize(width: int) -> None:
        ran.append(width)

    ref = await either.enqueue("resize", **params)
    await nq.Worker(app, either).run_until_idle()
    status = await either.status(ref)

    assert status is not None
    assert (status.state, ran) == ("failed", [])
    assert message in (status.error or "")
    assert await outcomes(either, ref) == ["failed"]


@pytest.mark.parametrize("value", [object(), {1, 2j}, float("nan"), {"a": [object()]}])
async def test_a_result_that_is_not_json(app: nq.App, either: nq.Client, value: object) -> None:
    """A result that cannot be written as JSON fails the task, and it is not tried again."""

    @app.task(name="give")
    async def give() -> object:
        return value

    ref = await either.enqueue(give)
    await nq.Worker(app, either).run_until_idle()
    status = await either.status(ref)

    assert status is not None
    assert (status.state, status.attempt) == ("failed", 1)
    assert "ResultError" in (status.error or "")


@pytest.mark.parametrize(
    "error",
    [
        Mute(),
        ValueError("nul \0 byte"),
        ValueError("surrogate \ud800"),
        ValueError("long" * 300_000),
        ExceptionGroup("many", [ValueError(str(n) * 1000) for n in range(200)]),
    ],
    ids=["mute", "nul", "surrogate", "1 MB", "group"],
)
async def test_exceptions_that_are_hard_to_store(
    app: nq.App, either: nq.Client, error: Exception
) -> None:
    """Whatever an exception is like, its task is settled, and the error is stored in bounds."""

    @app.task(name="fail", retry=None)
    async def fail() -> None:
        raise error

    ref, fine = await either.enqueue(fail), await either.enqueue("fine")
    app.task(name="fine")(_fine)
    await nq.Worker(app, either).run_until_idle()
    status = await either.status(ref)
    (attempt,) = await either.attempts(ref)

    assert status is not None
    assert status.state == "failed"
    assert type(error).__name__ in (status.error_type or "")
    assert 0 < len(status.error_message or "") <= 10_000
    assert 0 < len(attempt.error_traceback or "") <= 50_000
    assert await outcomes(either, fine) == ["succeeded"]


async def _fine() -> None:
    pass


async def test_a_result_that_only_postgres_refuses(
    app: nq.App, pg: nq.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """One outcome that cannot be stored fails its own task with the reason, not its batch."""

    @app.task(name="give")
    async def give(bad: bool) -> str:
        return "\0" if bad else "good"

    refs = [await pg.enqueue(give, bad) for bad in (False, True, False)]
    await nq.Worker(app, pg).run_until_idle()
    statuses = await pg.status_many(refs)

    assert [status and str(status.state) for status in statuses] == [
        "succeeded",
        "failed",
        "succeeded",
    ]
