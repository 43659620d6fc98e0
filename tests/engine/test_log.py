"""What the log says of attempts."""

from __future__ import annotations

import logging

import pytest

from trio.testing import MockClock

import nursery_queue as nq

from tests.support.workers import Longest, final, working


async def test_failures_are_told(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Each failed attempt is a line with its error, the last one an error; a success is none."""

    @app.task(name="flaky", retry=nq.RetryPolicy(max_attempts=2, initial=7))
    async def flaky() -> None:
        msg = "no luck"
        raise ValueError(msg)

    @app.task(name="fine")
    async def fine() -> None: ...

    with caplog.at_level(logging.INFO, "nursery_queue"):
        async with working(nq.Worker(app, client, rng=Longest())):
            await final(client, await client.enqueue(fine))
            await final(client, await client.enqueue(flaky))

    lines = [line for line in caplog.records if line.name == "nursery_queue"]
    assert [(line.levelname, line.getMessage()) for line in lines] == [
        ("INFO", "task 2 (flaky, attempt 1) failed, again in 7 s: ValueError: no luck"),
        ("ERROR", "task 2 (flaky, attempt 2) failed, for good: ValueError: no luck"),
    ]
