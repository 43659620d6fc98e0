"""What we use of psycopg beyond its documentation is listed here, and still behaves."""

# pyright: reportPrivateUsage=false
# Private names are what this file is about.

from __future__ import annotations

import ast
import inspect

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from psycopg import connection_async, conninfo, errors, postgres, waiting
from psycopg.types import array

from nursery_queue._psycopg import _connection
from nursery_queue._psycopg._connection import Connection


ROOM = Path(_connection.__file__).parent
MODULES = sorted(ROOM.glob("*.py"))
ELSEWHERE = sorted(set(ROOM.parent.rglob("*.py")) - set(MODULES))

# Attributes of psycopg's connection that begin with an underscore.
PRIVATE = {
    "_adapters",
    "_autocommit",
    "_check_connection_ok",
    "_exec_command",
    "_notifies_backlog",
    "_pipeline",
    "_pipeline_nolock",
    "_prepared",
    "_try_cancel",
}


def parameters(function: object) -> list[str]:
    assert callable(function)
    return list(inspect.signature(function).parameters)


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def defined_here(tree: ast.AST) -> Iterator[str]:
    """Name everything private that *tree* itself defines."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case _:
                pass


def set_on_instances(tree: ast.AST) -> Iterator[str]:
    """Name the methods *tree* defines and the attributes it assigns."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case _:
                pass


def used(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_no_other_private_name_is_used() -> None:
    """Every underscored attribute used in `_psycopg` is defined there or listed above."""
    trees = [ast.parse(module.read_text()) for module in MODULES]
    ours = {name for tree in trees for name in defined_here(tree)} - PRIVATE
    found = {name for tree in trees for name in used(tree) if private(name)}

    assert found - ours == PRIVATE - {"_try_cancel"}  # only psycopg calls that one


def test_no_private_name_is_used_elsewhere() -> None:
    """Outside of `_psycopg` nothing uses a private attribute of psycopg's connection."""
    for module in ELSEWHERE:
        assert not used(ast.parse(module.read_text())) & PRIVATE, module


def test_no_private_module_is_imported() -> None:
    """Nothing is imported from psycopg's private modules, nor a private name from any."""
    for module in [*MODULES, *ELSEWHERE]:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("psycopg"):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                assert not any(map(private, names)), (module.name, names)


def test_nothing_else_of_psycopg_is_overridden(dsn: str) -> None:
    """Of psycopg's attributes the connection redefines those listed here, and no other."""
    with psycopg.connect(dsn) as plain:
        theirs = set(dir(psycopg.AsyncConnection)) | set(vars(plain))
    ours = set(set_on_instances(ast.parse(inspect.getsource(Connection))))

    assert {name for name in ours & theirs if not name.startswith("__")} == {
        "_adapters",
        "_autocommit",
        "_pipeline_nolock",
        "_try_cancel",
        "cancel_safe",
        "close",
        "commit",
        "connect",
        "cursor_factory",
        "lock",
        "notifies",
        "pipeline",
        "prepare_threshold",
        "rollback",
        "row_factory",
        "server_cursor_factory",
        "transaction",
        "wait",
    }


async def test_private_attributes(conn: Connection) -> None:
    """The attributes listed above are there, and are what we take them for."""
    assert all(hasattr(conn, name) for name in PRIVATE)
    assert conn._autocommit is True
    assert conn._adapters is None
    assert conn._pipeline is None
    assert isinstance(conn._notifies_backlog, deque)
    conn._check_connection_ok()
    conn.abort()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        conn._check_connection_ok()


async def test_pipeline_attributes(conn: Connection) -> None:
    """`_pipeline` is set in a pipeline and in `executemany()`, and can be synced."""
    async with conn.pipeline() as pipeline:
        assert conn._pipeline is pipeline
        await conn.sync_pipeline()
    async with conn._pipeline_nolock() as pipeline:
        assert conn._pipeline is pipeline
    assert conn._pipeline is None


async def test_prepared_statements_are_forgotten(conn: Connection) -> None:
    """`_prepared.clear()` and `maintain_gen()` forget what was prepared, here and there."""
    await conn.fetch("select 1")
    conn._prepared.clear()
    await conn.wait(conn._prepared.maintain_gen(conn))

    cursor = await conn.execute("select count(*) from pg_prepared_statements")
    assert await cursor.fetchone() == (0,)


def test_overridden_methods() -> None:
    """The methods we override still have the parameters we know."""
    base = psycopg.AsyncConnection
    assert parameters(base.wait)[:3] == ["self", "gen", "interval"]
    assert set(parameters(base.wait)) <= {"self", "gen", "interval", "timeout"}
    assert parameters(base.cancel_safe) == ["self", "timeout"]
    assert parameters(base._try_cancel) == ["self", "timeout"]
    assert parameters(base.notifies) == ["self", "timeout", "stop_after"]
    assert parameters(base.transaction) == ["self", "savepoint_name", "force_rollback"]
    assert parameters(base.pipeline) == parameters(base._pipeline_nolock) == ["self"]
    assert parameters(base.connect) == [
        "conninfo",
        "autocommit",
        "prepare_threshold",
        "context",
        "row_factory",
        "cursor_factory",
        "kwargs",
    ]
    assert parameters(psycopg.AsyncServerCursor.close) == ["self"]
    for name in ("close", "commit", "rollback"):
        assert parameters(getattr(base, name)) == ["self"]


def test_asyncio_is_met_in_no_other_place() -> None:
    """The functions of psycopg's connection that use asyncio are the ones we replace."""
    replaced = {"connect", "cancel_safe", "_try_cancel", "notifies", "wait", "__init__"}
    source = ast.parse(inspect.getsource(connection_async))
    asyncs = {"asyncio", "waiting", "to_thread", "Lock", "ALock", "monotonic"}
    meeting: set[str] = set()
    for node in ast.walk(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            if names & asyncs:
                meeting.add(node.name)

    assert meeting <= replaced


def test_undocumented_functions() -> None:
    """The functions and enums that psycopg does not document have not changed."""
    assert parameters(conninfo.conninfo_attempts) == ["params"]
    assert conninfo.timeout_from_conninfo({"connect_timeout": "1"}) == 2
    assert conninfo.timeout_from_conninfo({}) == 130
    assert parameters(errors.finish_pgconn) == ["pgconn"]
    assert parameters(postgres.register_default_types) == ["types"]
    assert parameters(postgres.register_default_adapters) == ["context"]
    assert parameters(array.register_all_arrays) == ["context"]
    assert (waiting.Wait.R, waiting.Wait.W, waiting.Wait.RW) == (1, 2, 3)
    assert (waiting.Ready.R, waiting.Ready.W, waiting.Ready.RW) == (1, 2, 3)
