"""Handlers that each run one library. `python handlers.py` embeds their worker in a trio program.

psycopg is imported first of all, as import sorters have it.
"""

# ruff: noqa: I001

from __future__ import annotations

import psycopg

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading

from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import aiohttp.web
import aiosqlite
import anyio
import anyio.to_thread
import asyncpg  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
import django
import httpx
import psycopg_pool
import redis.asyncio
import redis.exceptions
import sqlalchemy
import trio

from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import create_async_engine

import nursery_queue as nq


DSN = os.environ["NURSERY_QUEUE_DSN"]
PARTS: dict[str, Any] = dict(conninfo_to_dict(DSN))
app = nq.App()
on_asyncio = functools.partial(app.task, asyncio=True, retry=None, timeout=30)
in_a_thread = functools.partial(app.task, retry=None, timeout=30)

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": PARTS.get("host"),
            "PORT": PARTS.get("port"),
            "NAME": PARTS["dbname"],
            "USER": PARTS.get("user"),
            "PASSWORD": PARTS.get("password"),
        }
    },
    INSTALLED_APPS=["django.contrib.contenttypes"],
    USE_TZ=True,
)
django.setup()


# -- databases -------------------------------------------------------------------------------


@on_asyncio(name="psycopg: AsyncConnection")
async def psycopg_connection() -> int:
    async with await psycopg.AsyncConnection.connect(DSN) as connection:
        cursor = await connection.execute("select pg_sleep(0.01), 42")
        row = await cursor.fetchone()
        assert row is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.execute("select pg_sleep(60)")
        return int(row[1])


@on_asyncio(name="psycopg: pool")
async def psycopg_pool_() -> int:
    async with psycopg_pool.AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False) as pool:

        async def ask(number: int) -> int:
            async with pool.connection() as connection:
                row = await (await connection.execute("select %s::int", [number])).fetchone()
                assert row is not None
                return int(row[0])

        return sum(await asyncio.gather(*map(ask, range(10)))) - 3


async def _ask_sqlalchemy(driver: str) -> int:
    url = sqlalchemy.URL.create(
        f"postgresql+{driver}",
        username=PARTS.get("user"),
        password=PARTS.get("password"),
        database=PARTS["dbname"],
    )
    where = {"host": PARTS.get("host"), "port": int(PARTS.get("port", 5432))}
    engine = create_async_engine(url, connect_args=where)
    try:
        async with engine.begin() as connection:
            result = await connection.execute(sqlalchemy.text("select 42"))
            return int(result.scalar_one())
    finally:
        await engine.dispose()


@on_asyncio(name="SQLAlchemy: psycopg")
async def sqlalchemy_psycopg() -> int:
    return await _ask_sqlalchemy("psycopg")


@on_asyncio(name="SQLAlchemy: asyncpg")
async def sqlalchemy_asyncpg() -> int:
    return await _ask_sqlalchemy("asyncpg")


@on_asyncio(name="asyncpg")
async def asyncpg_() -> int:
    library: Any = asyncpg  # partly typed
    where = {
        "host": PARTS.get("host"),
        "port": int(PARTS.get("port", 5432)),
        "user": PARTS.get("user"),
        "password": PARTS.get("password"),
        "database": PARTS["dbname"],
    }
    async with library.create_pool(**where, min_size=1, max_size=2) as pool:
        return int(await pool.fetchval("select 42"))


@on_asyncio(name="aiosqlite")
async def aiosqlite_() -> int:
    async with aiosqlite.connect(":memory:") as connection:
        cursor = await connection.execute("select 42")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])


@contextlib.contextmanager
def _redis_server(directory: str) -> Generator[str]:
    path = f"{directory}/redis.sock"
    program = [
        "redis-server",
        "--port",
        "0",
        "--unixsocket",
        path,
        "--save",
        "",
        "--dir",
        directory,
    ]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL) as server:
        try:
            yield path
        finally:
            server.terminate()


@on_asyncio(name="redis")
async def redis_() -> int:
    """Without a server here, how it fails to connect has to do."""
    with tempfile.TemporaryDirectory() as directory:
        if shutil.which("redis-server") is None:
            client = redis.asyncio.Redis(unix_socket_path=f"{directory}/nobody.sock")
            try:
                await client.ping()  # type: ignore[misc,unused-ignore]
            except redis.exceptions.ConnectionError:
                return 42
            return 0
        with _redis_server(directory) as path:
            async with redis.asyncio.Redis(unix_socket_path=path) as client:
                async with asyncio.timeout(20):
                    while not os.path.exists(path):  # noqa: PTH110, ASYNC110, ASYNC240  # a server starts
                        await asyncio.sleep(0.01)
                await client.set("answer", 40)
                return int(await client.incrby("answer", 2))


# -- Django and asgiref ------------------------------------------------------------------------


@on_asyncio(name="Django: async ORM")
async def django_async() -> int:
    from django.contrib.contenttypes.models import ContentType  # noqa: PLC0415  # after set-up
    from django.db import connection, connections  # noqa: PLC0415

    def create() -> None:
        with connection.schema_editor() as editor:
            if ContentType._meta.db_table not in connection.introspection.table_names():
                editor.create_model(ContentType)

    await sync_to_async(create)()
    await ContentType.objects.acreate(app_label="shop", model="order")
    found = [each.model async for each in ContentType.objects.filter(app_label="shop")]
    await ContentType.objects.all().adelete()
    await sync_to_async(connections.close_all)()
    return 42 if found == ["order"] else 0


@on_asyncio(name="asgiref: sync_to_async")
async def asgiref_sync_to_async() -> int:
    def inner() -> int:
        assert threading.current_thread() is not threading.main_thread()

        async def back() -> int:
            await asyncio.sleep(0)
            assert threading.current_thread() is threading.main_thread()
            return 42

        return async_to_sync(back)()

    return await sync_to_async(inner)()


@on_asyncio(name="asgiref: other threads")
async def asgiref_threads() -> int:
    with ThreadPoolExecutor(1) as own:
        return await sync_to_async(lambda: 42, thread_sensitive=False, executor=own)()


@in_a_thread(name="sync: async_to_sync")
def sync_async_to_sync() -> int:
    async def inner() -> int:
        await asyncio.sleep(0)
        return 40 + await sync_to_async(lambda: 2)()

    return async_to_sync(inner)()


@in_a_thread(name="sync: asyncio.run")
def sync_asyncio_run() -> int:
    async def inner() -> int:
        async with await psycopg.AsyncConnection.connect(DSN) as connection:
            row = await (await connection.execute("select 42")).fetchone()
            assert row is not None
            return int(row[0])

    return asyncio.run(inner())


# -- HTTP --------------------------------------------------------------------------------------


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n42")
    await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def _web() -> AsyncGenerator[str]:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    async with server:
        yield f"http://localhost:{server.sockets[0].getsockname()[1]}/"


@on_asyncio(name="httpx")
async def httpx_() -> int:
    async with _web() as url, httpx.AsyncClient(trust_env=False) as client:
        answers = await asyncio.gather(*(client.get(url) for _ in range(5)))
        return max(int(answer.text) for answer in answers)


@on_asyncio(name="aiohttp")
async def aiohttp_() -> int:
    async with _web() as url, aiohttp.ClientSession() as session, session.get(url) as answer:
        return int(await answer.text())


@on_asyncio(name="aiohttp: server")
async def aiohttp_server() -> int:
    async def hello(request: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(text=request.query["n"])

    web = aiohttp.web.Application()
    web.router.add_get("/", hello)
    runner = aiohttp.web.AppRunner(web)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await aiohttp.web.SockSite(runner, listening).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/?n=42"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            number = int(await answer.text())
        await runner.cleanup()
    return number


# -- asyncio itself, and anyio -------------------------------------------------------------------


@on_asyncio(name="asyncio: executors")
async def executors() -> int:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(2) as own:
        first = await loop.run_in_executor(own, lambda: 40)
    return first + await loop.run_in_executor(None, lambda: 1) + await asyncio.to_thread(int, "1")


@on_asyncio(name="asyncio: subprocess")
async def subprocess_() -> int:
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "print(int(input()) + 2)"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await program.communicate(b"40\n")
    shell = await asyncio.create_subprocess_shell("exit 3")
    assert (program.returncode, await shell.wait()) == (0, 3)
    return int(out)


@on_asyncio(name="asyncio: groups and limits")
async def groups_and_limits() -> int:
    async def slow(number: int) -> int:
        await asyncio.sleep(0.01)
        return number

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(slow(n)) for n in (20, 22)]
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
    except TimeoutError:
        return sum(task.result() for task in tasks)
    return 0


@on_asyncio(name="asyncio: streams and generators")
async def streams_and_generators() -> int:
    async def lines(reader: asyncio.StreamReader) -> AsyncGenerator[int]:
        try:
            while line := await reader.readline():
                yield int(line)
        finally:
            await asyncio.sleep(0)

    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    _, other = await asyncio.open_connection(sock=theirs)
    other.write(b"42\n43\n")
    numbers: list[int] = []
    async for number in lines(reader):
        numbers.append(number)
        break  # left to be closed by the loop
    for each in (writer, other):
        each.close()
        await each.wait_closed()
    return sum(numbers)


@on_asyncio(name="asyncio: signals")
async def signals() -> int:
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGWINCH, heard.set)
    os.kill(os.getpid(), signal.SIGWINCH)
    await heard.wait()
    return 42 if loop.remove_signal_handler(signal.SIGWINCH) else 0


@on_asyncio(name="anyio")
async def anyio_() -> int:
    numbers: list[int] = []

    async def add(number: int) -> None:
        numbers.append(await anyio.to_thread.run_sync(int, str(number)))

    async with anyio.create_task_group() as group:
        group.start_soon(add, 20)
        group.start_soon(add, 22)
    with anyio.move_on_after(0.01):
        await anyio.sleep_forever()
    return sum(numbers)


async def _main() -> None:
    async with nq.connect(DSN) as client:
        await nq.Worker(app, client).run_until_idle()


if __name__ == "__main__":
    trio.run(_main)
