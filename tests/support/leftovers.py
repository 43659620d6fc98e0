"""Finds what a worker has left behind when `run()` returns."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import functools
import threading

from collections.abc import Awaitable, Callable, Generator, Iterator
from contextvars import ContextVar
from typing import Any
from uuid import UUID

import attrs
import psycopg
import pytest
import trio

from trio._core import _run as trio_internals

import nursery_queue as nq

from nursery_queue._core._model import WorkerInfo
from nursery_queue._core._states import State
from nursery_queue._memory._memory_store import MemoryStore
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._pg._sessions import APPLICATION
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._pool import Pool
from tests.support.databases import lent, name_in
from tests.support.proxy import DETOURS


ROWS = """
    select format('task %%s is claimed by worker %%s', task_id, worker_id)
      from {schema}.running where worker_id = any (%(ids)s)
    union all
    select format('worker %%s has a row', id) from {schema}.worker where id = any (%(ids)s)
"""


@attrs.define(eq=False)
class Shift:
    """One run of a worker, and what it has laid hands on."""

    task: trio.lowlevel.Task
    scope: trio_internals.CancelStatus
    worker_ids: set[UUID] = attrs.field(factory=set[UUID])
    stores: set[MemoryStore | PostgresStore] = attrs.field(
        factory=set["MemoryStore | PostgresStore"]
    )
    connections: list[Connection] = attrs.field(factory=list[Connection])


# Tasks inherit it from whoever starts them, so it tells in whose shift they were started.
shift_of: ContextVar[Shift | None] = ContextVar("shift", default=None)


@attrs.define(eq=False)
class Watch:
    """Watches the workers of one test; `found` says what they left behind."""

    look_for_claims: bool = True
    found: list[str] = attrs.field(factory=list[str])
    _on: set[Shift] = attrs.field(factory=set[Shift], init=False)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(nq.Worker, "_run", self.around(nq.Worker._run))
        patch.setattr(Connection, "__init__", _noting_connections(Connection.__init__))
        for store in (MemoryStore, PostgresStore):
            patch.setattr(store, "register", _noting_workers(store.register))

    def around(self, run: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """Return *run*, and a look round when it has ended in whatever way."""

        @functools.wraps(run)
        async def watched(*args: Any, **kwargs: Any) -> None:
            task = trio.lowlevel.current_task()
            shift, before = Shift(task, task._cancel_status), set(_system_tasks())
            token = shift_of.set(shift)
            self._on.add(shift)
            try:
                await run(*args, **kwargs)
            finally:
                self._on.discard(shift)
                shift_of.reset(token)
                self._look(shift, before)

        return watched

    def _look(self, shift: Shift, before: set[trio.lowlevel.Task]) -> None:
        self.found += [f"task {task!r}" for task in _tasks(shift, before)]
        self.found += [f"timer of {scope!r}" for scope in _timers(shift)]
        if not self._on:  # else they may belong to another worker
            self.found += _threads()
        for store in shift.stores:
            alone = all(store not in other.stores for other in self._on)
            self.found += _connections(shift, store, alone=alone)
            if self.look_for_claims:
                self.found += _claims(store, shift.worker_ids)


def _all_tasks() -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    tasks = [] if root is None else [root]
    for task in tasks:
        yield task
        for nursery in task.child_nurseries:
            tasks.extend(nursery.child_tasks)


def _system_tasks() -> Iterator[trio.lowlevel.Task]:
    """Yield tasks that stand outside of all scopes and have our code; the tests' clock may."""
    root = trio.lowlevel.current_root_task()
    for task in _all_tasks():
        code = getattr(task.coro, "cr_code", None)
        if (
            task.parent_nursery is not None
            and task.parent_nursery.parent_task is root
            and code is not None
            and "/nursery_queue/" in code.co_filename
            and "/nursery_queue/testing/" not in code.co_filename
            # It is the client's, and lives as long as anybody waits, for whatever task.
            and not code.co_filename.endswith("/nursery_queue/_client/_notifier.py")
        ):
            yield task


def _tasks(shift: Shift, before: set[trio.lowlevel.Task]) -> Iterator[trio.lowlevel.Task]:
    for task in _all_tasks():
        if task is not shift.task and task.context.get(shift_of) is shift:
            yield task
    yield from set(_system_tasks()) - before


def _timers(shift: Shift) -> Iterator[trio.CancelScope]:
    """Yield scopes with a deadline which were entered in this shift, and are not left."""
    outer: set[trio_internals.CancelStatus] = set()
    status: trio_internals.CancelStatus | None = shift.scope
    while status is not None:
        outer.add(status)
        status = status.parent
    context: Any = trio_internals.GLOBAL_RUN_CONTEXT
    heap: list[tuple[float, int, trio.CancelScope]] = context.runner.deadlines._heap
    for deadline, _, scope in heap:
        inner = scope._cancel_status
        if deadline != scope._registered_deadline or inner is None or inner in outer:
            continue  # an entry that has been given up, or somebody else's around us
        if all(t is shift.task or t.context.get(shift_of) is shift for t in _within(inner)):
            yield scope


def _within(status: trio_internals.CancelStatus) -> Iterator[trio.lowlevel.Task]:
    yield from status._tasks
    for child in status._children:
        yield from _within(child)


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        if thread.name.startswith("nursery_queue"):
            yield f"thread {thread.name!r}"


def _connections(shift: Shift, store: MemoryStore | PostgresStore, *, alone: bool) -> Iterator[str]:
    """Yield what is open and in no pool, and what nobody could be using any more."""
    if isinstance(store, MemoryStore):
        if store._rings and alone:
            yield "somebody listens"
        return
    pools = (store._pool, store._control, store._heartbeat)
    for connection in shift.connections:
        if not connection.closed and not any(connection in pool._born for pool in pools):
            yield f"connection {connection!r}"
    if alone:
        yield from _borrowed(store._control)
        yield from _borrowed(store._heartbeat)
        if store._pool.max_size != (store.pool_size or APPLICATION):
            yield "room in the pool"


def _borrowed(pool: Pool) -> Iterator[str]:
    if pool.stats.in_use:
        yield f"a connection that is not given back: {pool.stats}"


def _claims(store: MemoryStore | PostgresStore, ids: set[UUID]) -> Iterator[str]:
    if isinstance(store, PostgresStore):
        yield from _claims_in_postgres(store, ids)
        return
    for task_id, place in store._tables.places.items():
        if place.state is State.RUNNING and place.worker_id in ids:
            yield f"task {task_id} is claimed by worker {place.worker_id}"
    for worker_id in ids & set(store._tables.workers):
        yield f"worker {worker_id} has a row"


def _claims_in_postgres(store: PostgresStore, ids: set[UUID]) -> Iterator[str]:
    query = ROWS.format(schema=f'"{store.schema}"')
    params = {"ids": list(ids)}
    try:
        if database := lent.get(name_in(store.conninfo)):
            # By a way of its own: that of the store may lead through a task of this test.
            rows = database.ask(query, params)
        else:
            dsn = DETOURS.get(store.conninfo, store.conninfo)
            with psycopg.connect(dsn, connect_timeout=3) as session:
                rows = session.execute(query.encode(), params).fetchall()
    except psycopg.Error as exc:
        rows = [(f"claims, perhaps: the database cannot be asked: {exc}",)]
    yield from (row for (row,) in rows)


def _noting_connections(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def noting(connection: Connection, *args: Any, **kwargs: Any) -> None:
        init(connection, *args, **kwargs)
        if (shift := shift_of.get()) is not None:
            shift.connections.append(connection)

    return noting


def _noting_workers(register: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(register)
    async def noting(store: Any, worker: WorkerInfo) -> None:
        if (shift := shift_of.get()) is not None:
            shift.worker_ids.add(worker.id)
            shift.stores.add(store)
        await register(store, worker)

    return noting


def watched(request: pytest.FixtureRequest) -> Generator[Watch]:
    """Watch the workers of a test; fail it if they leave something behind."""
    marker = request.node.get_closest_marker("leaves_claims")
    if marker is not None and not (marker.args and isinstance(marker.args[0], str)):
        pytest.fail('say why: @pytest.mark.leaves_claims("...")')
    watch = Watch(look_for_claims=marker is None)
    with pytest.MonkeyPatch.context() as patch:
        watch.install(patch)
        yield watch
    if watch.found:
        pytest.fail("\n".join(["a worker has left behind:", *watch.found]), pytrace=False)
