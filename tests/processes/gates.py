"""What lets a handler of another process go on: a file."""

from __future__ import annotations

import trio


async def until_there(path: str) -> None:
    """Wait until another process has made a file."""
    while not await trio.Path(path).exists():  # noqa: ASYNC110  # another process makes it
        await trio.sleep(0.02)
