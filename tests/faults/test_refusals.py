"""A PostgreSQL that answers with an error: for what, whose fault it is, and who goes on."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import functools
import uuid

from collections.abc import Awaitable, Callable, Generator

import attrs
import psycopg
import pytest
import trio

from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._psycopg._connection import Connection
from nursery_queue.testing import VirtualTime
from tests.faults.loops import Holding, lines, logged, loop_health, unwell
from tests.support.waits import until
from tests.support.workers import Longest, outcomes, state, working


@attrs.define(eq=False)
class Admin:
    """Somebody who may do everything, also to others; `role` is who works."""

    session: psycopg.Connection
    role: str

    def do(self, statement: str) -> None:
        self.session.execute(statement.format(role=self.role).encode())

    def ask(self, query: str) -> list[tuple[object, ...]]:
        return self.session.execute(query.encode()).fetchall()

    @contextlib.contextmanager
    def before_an_end(self, body: str) -> Generator[Callable[[], None]]:
        """Run *body*, in PL/pgSQL, before a task ends, until the block ends or it is called off."""
        self.session.execute(
            "create function nursery_queue.no() returns trigger language plpgsql"
            f" as $$ begin {body} end $$".encode()
        )
        self.do(
            "create trigger no before insert on nursery_queue.finished"
            " for each row execute function nursery_queue.no()"
        )
        try:
            yield lambda: self.do("drop trigger no on nursery_queue.finished")
        finally:
            self.do("drop function nursery_queue.no() cascade")

    async def until_somebody_waits(self) -> None:
        """Return when a statement waits for a lock. Virtual time does not move meanwhile."""
        await until(lambda: bool(self.ask("select 1 from pg_locks where not granted")))


@pytest.fixture
def admin(migrated: str) -> Generator[Admin]:
    with psycopg.connect(migrated, autocommit=True) as session:
        admin = Admin(session, f"worker_{uuid.uuid4().hex}")
        admin.do("create role {role}")
        try:
            admin.do("grant usage on schema nursery_queue to {role}")
            admin.do("grant all on all tables in schema nursery_queue to {role}")
            admin.do("grant execute on all functions in schema nursery_queue to {role}")
            yield admin
        finally:
            admin.do("drop owned by {role}")
            admin.do("drop role {role}")


@pytest.fixture
def limited(admin: Admin, migrated: str) -> str:
    """DSN of somebody who may do what a worker has to do."""
    return make_conninfo(migrated, options=f"-c role={admin.role}")


@pytest.fixture
def double(app: nq.App) -> None:
    """Names the task type `double`."""

    @app.task(name="double")
    async def double(number: int) -> int:
        return 2 * number


@attrs.frozen
class Trouble:
    """What somebody did to the database, how it is mended, and whom it concerns."""

    begin: str
    end: str
    loop: str


def revoked(what: str, loop: str) -> Trouble:
    return Trouble(f"revoke {what} from {{role}}", f"grant {what} to {{role}}", loop)


def renamed(table: str, loop: str, *, column: str | None = None) -> Trouble:
    if column is None:
        rename = "alter table nursery_queue.{} rename to {}"
        return Trouble(rename.format(table, "away"), rename.format("away", table), loop)
    rename = f"alter table nursery_queue.{table} rename column {{}} to {{}}"
    return Trouble(rename.format(column, "away"), rename.format("away", column), loop)


TROUBLES = {
    "claim: permission": revoked("insert on nursery_queue.running", "claimer"),
    "settle: permission": revoked("insert on nursery_queue.attempt", "settler"),
    "settle: permission in a branch": revoked("delete on nursery_queue.dedup", "settler"),
    "heartbeat: permission": revoked("update on nursery_queue.worker", "heartbeat maintenance"),
    "prune: permission": revoked("delete on nursery_queue.task", "maintenance"),
    "claim: no function": Trouble(
        "alter routine nursery_queue.walk rename to away",
        "alter routine nursery_queue.away rename to walk",
        "claimer",
    ),
    "settle: no table": renamed("finished", "settler"),
    "settle: no column": renamed("attempt", "settler", column="outcome"),
    "heartbeat: no column": renamed("worker", "heartbeat", column="draining"),
}


@pytest.mark.parametrize("name", TROUBLES)
async def test_the_database_as_such_refuses(
    virtual_time: VirtualTime,
    app: nq.App,
    admin: Admin,
    limited: str,
    holding: Holding,
    double: None,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """No task is blamed for it: what is in hand is kept, and all is done when it is mended."""
    trouble = TROUBLES[name]
    concerned = set(trouble.loop.split())
    async with nq.connect(limited) as client:
        worker = nq.Worker(app, client, rng=Longest())
        with logged(caplog):
            async with working(worker):
                held = await client.enqueue("hold")
                await trio.sleep(1)
                admin.do(trouble.begin)
                refs = [await client.enqueue("double", number=n) for n in range(20)]
                # Less than the lease; but to prune it takes until the next round but one.
                await trio.sleep(100 if name.startswith("prune") else 20)
                assert unwell(worker) == concerned
                for loop in concerned:
                    assert loop_health(worker, loop).restarts > 3
                    assert "DatabaseRefused" in (loop_health(worker, loop).last_error or "")
                assert (holding.running, holding.cancelled) == (1, [])
                admin.do(trouble.end)
                await trio.sleep(40)
                assert unwell(worker) == set()
                assert worker.health().held == 1
                assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 20
                holding.go_on.set()

        for loop in concerned:
            refused, back = lines(caplog, loop)
            assert refused.startswith(f"ERROR {loop} failed, and will until it is mended: ")
            assert back == f"INFO {loop} is back"
        assert await outcomes(client, held) == ["succeeded"]


async def test_refused_for_longer_than_the_lease(
    virtual_time: VirtualTime, app: nq.App, admin: Admin, limited: str, holding: Holding
) -> None:
    """A worker that may not renew its lease gives its tasks up, and begins anew when it may."""
    trouble = TROUBLES["heartbeat: permission"]
    async with nq.connect(limited) as client:
        worker = nq.Worker(app, client, rng=Longest())
        async with working(worker):
            ref = await client.enqueue("hold")
            await trio.sleep(1)
            admin.do(trouble.begin)
            await trio.sleep(40)
            assert [reason for _, reason in holding.cancelled] == ["lease_lost"]
            admin.do(trouble.end)
            holding.go_on.set()
            await trio.sleep(40)
            assert unwell(worker) == set()
        assert await outcomes(client, ref) == ["lost", "succeeded"]


@pytest.mark.leaves_claims("it may not store what became of them")
async def test_refused_until_the_end(
    virtual_time: VirtualTime,
    app: nq.App,
    admin: Admin,
    limited: str,
    holding: Holding,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker that may neither settle nor deregister ends in time, without an error."""
    async with nq.connect(limited) as client:
        async with working(nq.Worker(app, client, rng=Longest())):
            await client.enqueue("hold")
            await trio.sleep(1)
            admin.do("revoke all on nursery_queue.worker, nursery_queue.attempt from {role}")
            holding.go_on.set()
            await trio.sleep(10)
            before = trio.current_time()
        assert trio.current_time() - before <= 5
    assert "could not deregister" in caplog.text
    assert admin.ask("select attempt from nursery_queue.running") == [(1,)]


async def test_a_part_of_the_tidying_up_is_refused(
    virtual_time: VirtualTime,
    app: nq.App,
    admin: Admin,
    limited: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line when it begins and one when it ends, though the other parts go well meanwhile."""
    what = "delete on nursery_queue.parked"
    async with nq.connect(limited) as client:
        await client.enqueue("nobody")
        worker = nq.Worker(app, client)
        async with working(worker):
            with logged(caplog):
                admin.do(f"revoke {what} from {{role}}")
                for _ in range(20):
                    await client.enqueue("nobody")
                    await trio.sleep(100)
                assert [*unwell(worker)] == ["maintenance"]
                admin.do(f"grant {what} to {{role}}")
                await trio.sleep(300)
                assert not unwell(worker)
    begin, end = lines(caplog, "maintenance")
    assert begin.startswith("ERROR maintenance failed, and will until it is mended: ")
    assert end == "INFO maintenance is back"


async def test_another_part_of_the_tidying_up_is_refused(
    virtual_time: VirtualTime,
    app: nq.App,
    admin: Admin,
    limited: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another line when another part is refused, too, and one when one of them is not any more."""
    unpark, prune = "delete on nursery_queue.parked", "delete on nursery_queue.task"
    async with nq.connect(limited) as client, working(nq.Worker(app, client)):
        with logged(caplog):
            for order in (
                f"revoke {unpark} from {{role}}",
                f"revoke {prune} from {{role}}",
                f"grant {unpark} to {{role}}",
                f"grant {prune} to {{role}}",
            ):
                admin.do(order)
                await trio.sleep(600)
    assert [line.partition(": DatabaseRefused")[0] for line in lines(caplog, "maintenance")] == [
        "ERROR maintenance failed, and will until it is mended",
        "ERROR maintenance: pruning fails, too",
        "INFO maintenance: bringing back what was put aside works again",
        "INFO maintenance is back",
    ]


async def test_refused_at_the_start(app: nq.App, admin: Admin, limited: str) -> None:
    """A worker that may not register says so at once."""
    admin.do("revoke insert on nursery_queue.worker from {role}")
    async with nq.connect(limited) as client:
        with pytest.raises(nq.DatabaseRefused, match="permission denied for table worker"):
            await nq.Worker(app, client).run()


# -- rows that are refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "constraint",
    [
        "check (result is distinct from '14')",  # 23514
        "check (1 / (result::text::int - 14) < 9)",  # 22012
    ],
)
async def test_a_row_is_refused(
    virtual_time: VirtualTime,
    app: nq.App,
    admin: Admin,
    pg: nq.Client,
    double: None,
    caplog: pytest.LogCaptureFixture,
    constraint: str,
) -> None:
    """An outcome that the database does not take fails its own task, and says why; once."""
    admin.do(f"alter table nursery_queue.finished add constraint own {constraint}")
    try:
        refs = await pg.enqueue_many(
            [nq.TaskRequest.by_name("double", {"number": n}) for n in range(20)]
        )
        worker = nq.Worker(app, pg)
        await worker.run_until_idle()
        statuses = await pg.status_many(refs)
        assert [status and str(status.state) for status in statuses] == [
            "failed" if n == 7 else "succeeded" for n in range(20)
        ]
        failed = statuses[7]
        assert failed is not None
        assert (failed.error_type, failed.attempt) == ("OutcomeNotStored", 1)
        assert loop_health(worker, "settler").restarts == 0
        assert len(lines(caplog, "cannot be stored")) == 1
    finally:
        admin.do("alter table nursery_queue.finished drop constraint own")


@pytest.mark.parametrize("transactional", [False, True])
async def test_a_row_that_cannot_be_forgotten(
    virtual_time: VirtualTime, app: nq.App, admin: Admin, pg: nq.Client, transactional: bool
) -> None:
    """A task that was not to be kept, and to which a row refers, is kept, and says why."""

    @app.task(name="brief", keep_for=0, retry=None, transactional=transactional)
    async def brief() -> None: ...

    admin.do("create table public.errand (task bigint references nursery_queue.task)")
    ref = await pg.enqueue("brief")
    admin.do(f"insert into public.errand values ({ref.id})")
    other = await pg.enqueue("brief")
    worker = nq.Worker(app, pg)
    await worker.run_until_idle()

    status = await pg.status(ref)
    assert status is not None
    assert (status.state, status.error_type) == (nq.State.FAILED, "OutcomeNotStored")
    assert "still referenced from table" in str(status.error_message)
    assert await pg.status(other) is None
    assert loop_health(worker, "settler").restarts == 0


async def test_every_row_is_refused(
    virtual_time: VirtualTime,
    app: nq.App,
    admin: Admin,
    pg: nq.Client,
    double: None,
) -> None:
    """If not even a plain failure can be stored it is not the outcome's fault: it is kept."""
    refuse = "raise 'maintenance';"
    worker = nq.Worker(app, pg, rng=Longest())
    with admin.before_an_end(refuse) as drop:
        async with working(worker):
            refs = [await pg.enqueue("double", number=n) for n in range(20)]
            await trio.sleep(20)
            assert unwell(worker) == {"settler"}
            assert "maintenance" in (loop_health(worker, "settler").last_error or "")
            drop()
            await trio.sleep(11)
            assert unwell(worker) == set()

    assert [await outcomes(pg, ref) for ref in refs] == [["succeeded"]] * 20


async def test_a_refusal_for_one_row(
    virtual_time: VirtualTime,
    app: nq.App,
    admin: Admin,
    pg: nq.Client,
    double: None,
) -> None:
    """What looks like a refusal of everything but is about one row does not stop the others."""
    refuse = "if new.result = '14' then perform 1 from nowhere; end if; return new;"
    worker = nq.Worker(app, pg, rng=Longest())
    with admin.before_an_end(refuse) as drop:
        async with working(worker):
            refs = [await pg.enqueue("double", number=n) for n in range(20)]
            await trio.sleep(11)
            done = [await state(pg, ref) for ref in refs]
            assert (done.count("succeeded"), done[7]) == (19, "running")
            late = await pg.enqueue("double", number=1)
            await trio.sleep(2 * 11)
            assert await state(pg, late) == "succeeded"
            drop()
            await trio.sleep(11)

    assert [await outcomes(pg, ref) for ref in refs] == [["succeeded"]] * 20


async def test_a_migration_that_changes_types(
    virtual_time: VirtualTime, app: nq.App, admin: Admin, pg: nq.Client, double: None
) -> None:
    """A worker does not mind that a migration has overtaken statements it had prepared."""
    async with working(worker := nq.Worker(app, pg, rng=Longest())):
        for n in range(40):  # until it is prepared on both connections
            await pg.result(await pg.enqueue("double", number=n))
        admin.do("alter table nursery_queue.task alter column keep_for type numeric")
        try:
            ref = await pg.enqueue("double", number=3)
            await trio.sleep(3)
            assert await outcomes(pg, ref) == ["succeeded"]
            assert unwell(worker) == set()
            assert loop_health(worker, "claimer").restarts == 0  # its columns are cast
        finally:
            admin.do("alter table nursery_queue.task alter column keep_for type float8")
            await trio.sleep(3)


# -- tables that are locked ----------------------------------------------------------------------


def make_impatient(client: nq.Client) -> None:
    """Have the worker's own statements wait 20 ms for a lock: virtual time stands still for it."""
    store = client.store
    assert isinstance(store, PostgresStore)
    for pool in (store._control, store._heartbeat):
        pool.connect = functools.partial(_impatient, pool.connect)


async def _impatient(connect: Callable[[], Awaitable[Connection]] | None) -> Connection:
    assert connect is not None
    conn = await connect()
    await conn.execute("set lock_timeout = '20ms'")
    return conn


@pytest.mark.parametrize("table", ["task", "running", "worker"])
async def test_a_table_is_locked(
    virtual_time: VirtualTime,
    app: nq.App,
    admin: Admin,
    migrated: str,
    holding: Holding,
    double: None,
    caplog: pytest.LogCaptureFixture,
    table: str,
) -> None:
    """Whoever needs it tries again until it is free; no task and no handler is hurt."""
    async with nq.connect(migrated) as client:
        make_impatient(client)
        worker = nq.Worker(app, client, poll_interval=1, rng=Longest())
        with logged(caplog):
            async with working(worker):
                held = await client.enqueue("hold")
                await trio.sleep(1)
                with psycopg.connect(migrated) as other:
                    later = app["double"].options(run_after=3)  # else they are claimed at once
                    refs = [await client.enqueue(later, number=n) for n in range(5)]
                    other.execute(
                        f"lock table nursery_queue.{table} in access exclusive mode".encode()
                    )
                    await trio.sleep(20)
                    assert "claimer" in unwell(worker)
                    assert ("heartbeat" in unwell(worker)) == (table != "task")
                    assert (holding.running, holding.cancelled) == (1, [])
                    other.rollback()
                if table != "task":
                    refs += [await client.enqueue("double", number=n) for n in range(5)]
                await trio.sleep(40)
                assert unwell(worker) == set()
                holding.go_on.set()
        for name in ("claimer", "settler", "heartbeat"):
            told = [line for line in lines(caplog, name) if line.split()[1] == name]
            assert len(told) in {0, 2}
        for ref in (held, *refs):
            assert await outcomes(client, ref) == ["succeeded"]


@pytest.mark.parametrize("table", ["attempt", "running", "worker"])
async def test_a_table_is_locked_for_a_moment(
    virtual_time: VirtualTime,
    app: nq.App,
    admin: Admin,
    migrated: str,
    pg: nq.Client,
    holding: Holding,
    double: None,
    table: str,
) -> None:
    """A statement that waits for a lock gets it in the end; nothing is restarted for that."""
    worker = nq.Worker(app, pg, rng=Longest())
    async with working(worker):
        refs = [await pg.enqueue("hold")]
        await trio.sleep(1)
        with psycopg.connect(migrated) as other:
            other.execute(f"lock table nursery_queue.{table} in access exclusive mode".encode())
            if table == "worker":
                refs.append(await pg.enqueue("double", number=2))  # to be claimed
            else:
                holding.go_on.set()  # to be settled
            await admin.until_somebody_waits()
            other.rollback()
        refs.append(await pg.enqueue("double", number=3))
        await trio.sleep(10)
        assert {each.restarts for each in worker.health().loops.values()} == {0}
        holding.go_on.set()

    for ref in refs:
        assert await outcomes(pg, ref) == ["succeeded"]


async def test_a_lock_that_outlasts_the_patience(
    virtual_time: VirtualTime,
    app: nq.App,
    admin: Admin,
    migrated: str,
    pg: nq.Client,
    holding: Holding,
    double: None,
) -> None:
    """A claim and a settlement that wait too long are cancelled on the server, and made anew."""
    worker = nq.Worker(app, pg, rng=Longest())

    async def patience_ends(loop: str) -> None:
        assert loop_health(worker, loop).restarts == 0
        await admin.until_somebody_waits()
        virtual_time.advance(10)  # of a claim; of a settlement, with a lease of 30 s
        await until(lambda: restarted(loop))

    def restarted(loop: str) -> bool:
        if loop == "settler":
            virtual_time.advance(0.05)  # it asks for 2 s whether others could be settled
        return loop_health(worker, loop).restarts > 0

    async with working(worker):
        held = await pg.enqueue("hold")
        await trio.sleep(1)
        with psycopg.connect(migrated) as other:
            other.execute("lock table nursery_queue.dedup in access exclusive mode")
            holding.go_on.set()
            await patience_ends("settler")
            other.rollback()
        await trio.sleep(10)
        assert await outcomes(pg, held) == ["succeeded"]
        with psycopg.connect(migrated) as other:
            other.execute("lock table nursery_queue.running in access exclusive mode")
            refs = [await pg.enqueue("double", number=n) for n in range(5)]
            await patience_ends("claimer")
            other.rollback()
        await trio.sleep(10)
        assert unwell(worker) == set()

    assert [await outcomes(pg, ref) for ref in refs] == [["succeeded"]] * 5
