"""Is an installed package whole? Runs against a wheel, with no checkout in sight."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import importlib.resources
import pkgutil

import pytest

import nursery_queue

from nursery_queue.testing import MemoryStore


MODULES = [
    module.name
    for module in pkgutil.walk_packages(nursery_queue.__path__, "nursery_queue.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_can_be_imported(module: str) -> None:
    """No module needs what an installation does not bring."""
    importlib.import_module(module)


def test_the_version_is_known() -> None:
    """The distribution is called nursery-queue and has a version."""
    version = importlib.metadata.version("nursery-queue")

    assert version.split(".")[0].isdigit()


@pytest.mark.parametrize("directory", ["queries", "migrations"])
def test_the_sql_is_there(directory: str) -> None:
    """SQL files are part of the package and can be read as resources."""
    files = importlib.resources.files("nursery_queue") / "_pg" / directory
    statements = [each.read_text() for each in files.iterdir() if each.name.endswith(".sql")]

    assert statements
    assert all(statements)


def test_the_types_are_there() -> None:
    """Type checkers are told that the package is typed."""
    assert (importlib.resources.files("nursery_queue") / "py.typed").is_file()


async def test_an_asyncio_handler() -> None:
    """What asyncio handlers need is there, and does not warn."""
    app = nursery_queue.App()

    @app.task(name="doze", asyncio=True)
    async def doze() -> str:
        await asyncio.sleep(0)
        return "rested"

    async with nursery_queue.Client(MemoryStore()) as client:
        ref = await client.enqueue(doze)
        await nursery_queue.Worker(app, client).run_until_idle()
        assert await client.result(ref) == "rested"
