"""The application that the tests of the command line run, as the text of its module."""

from __future__ import annotations


APP = """
import os
import time

from pathlib import Path

import trio

import nursery_queue as nq

app = nq.App()
number = 7


def started(mark: str) -> None:
    with Path(mark).open("a") as file:
        file.write(f"{os.getpid()}\\n")


@app.task(name="hello")
async def hello(name: str = "you") -> str:
    return f"hello {name}"


@app.task(name="write")
async def write(mark: str) -> None:
    started(mark)


@app.task(name="fails", retry=None)
async def fails() -> None:
    raise ValueError("tab\\there, escape\\x1b[31m, markup [red]x[/red]")


@app.task(name="waits_for_file")
async def waits_for_file(mark: str, file: str) -> None:
    started(mark)
    while not await trio.Path(file).exists():
        await trio.sleep(0.01)


@app.task(name="waits")
async def waits(mark: str) -> None:
    started(mark)
    await trio.sleep_forever()


@app.task(name="stubborn")
async def stubborn(mark: str) -> None:
    started(mark)
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


@app.task(name="blocks")
async def blocks(mark: str) -> None:
    started(mark)
    time.sleep(3600)


@app.task(name="abandoned", timeout=0.1, retry=None)
def abandoned(mark: str) -> None:
    started(mark)
    time.sleep(3600)
"""
