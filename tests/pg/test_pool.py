"""The pool lends connections that work, in order, and never more than it may."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import random

from collections.abc import AsyncGenerator

import psycopg
import pytest
import trio
import trio.testing

from nursery_queue._core._errors import Closed, CommitOutcomeUnknown
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._connection_slots import FIRST, FIRST_OF_ATTEMPT, SINGLE
from nursery_queue._psycopg._database_errors import PoolTimeout
from nursery_queue._psycopg._pool import PING_TIMEOUT, Pool
from nursery_queue.testing import VirtualTime
from tests.support.network import pass_time_until
from tests.support.proxy import proxied


@contextlib.asynccontextmanager
async def closing(pool: Pool) -> AsyncGenerator[Pool]:
    try:
        yield pool
    finally:
        with trio.CancelScope(shield=True):
            await pool.aclose()


@pytest.fixture
async def pool(dsn: str) -> AsyncGenerator[Pool]:
    async with closing(Pool(dsn, max_size=2)) as pool:
        yield pool


async def pid_of(pool: Pool) -> int:
    async with pool.connection() as conn:
        return conn.info.backend_pid


async def ask(pool: Pool) -> None:
    async with pool.connection() as conn:
        assert await conn.fetch("select 1") == [(1,)]


async def kill(conn: Connection, pid: int) -> None:
    """Terminate a backend and wait until it is gone."""
    assert await conn.fetch("select pg_terminate_backend(%s, 10000)", (pid,)) == [(True,)]


# -- slots ----------------------------------------------------------------------------------


async def test_reuse(pool: Pool) -> None:
    """A connection that came back is lent again, the one used last first."""
    async with pool.connection() as first, pool.connection() as second:
        assert first is not second
    async with pool.connection() as again:
        assert again is first
    assert pool.stats.opened == 2


async def test_bounded(pool: Pool) -> None:
    """Never more than `max_size` connections are lent."""
    most = 0

    async def use() -> None:
        nonlocal most
        async with pool.connection() as conn:
            most = max(most, pool.stats.in_use)
            await conn.fetch("select 1")

    async def use_often() -> None:
        for _ in range(5):
            await use()

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(use_often)

    assert most == pool.stats.opened == 2
    assert pool.stats.in_use == pool.stats.waiting == 0


async def test_in_order(dsn: str) -> None:
    """Who asks first is served first."""
    served: list[int] = []

    async def use(pool: Pool, number: int) -> None:
        async with pool.connection():
            served.append(number)
            await trio.lowlevel.checkpoint()

    async with (
        closing(Pool(dsn, max_size=1)) as single,
        trio.open_nursery() as nursery,
        single.connection(),
    ):
        for number in range(10):
            nursery.start_soon(use, single, number)
            await trio.testing.wait_all_tasks_blocked()
        assert single.stats.waiting == 10

    assert served == list(range(10))


async def test_cancelled_waiter(pool: Pool) -> None:
    """A cancelled waiter loses its place and nothing else."""
    async with pool.connection(), pool.connection():
        with trio.move_on_after(0.01) as scope:
            async with pool.connection():
                pass
        assert scope.cancelled_caught
        assert pool.stats.waiting == 0
    async with pool.connection(), pool.connection():
        assert pool.stats.in_use == 2


async def test_checkout_timeout(dsn: str) -> None:
    """Waiting longer than `checkout_timeout` raises `PoolTimeout`, which says who has them."""
    async with closing(Pool(dsn, max_size=1)) as pool, pool.connection():
        pool.checkout_timeout = 0.05  # now that there is one: opening it takes what it takes
        with pytest.raises(PoolTimeout, match="1 of 1 are in use"):
            async with pool.connection():
                pass


def most(pool: Pool, *levels: int) -> list[int]:
    return [pool.slots.most(level) for level in levels]


@pytest.mark.parametrize(
    ("size", "kept", "levels"),
    [
        (1, 1, [1, 1, 1]),
        (2, 1, [1, 1, 2]),
        (3, 2, [1, 1, 2]),
        (4, 2, [2, 2, 3]),
        (10, 10, [1, 6, 8]),
        (12, 3, [9, 10, 11]),
        (42, 10, [32, 38, 40]),
    ],
)
def test_what_transactions_leave(dsn: str, size: int, kept: int, levels: list[int]) -> None:
    """The first transactions leave most, those within others less, and all leave one."""
    pool = Pool(dsn, max_size=size, kept=kept)
    assert most(pool, FIRST_OF_ATTEMPT, FIRST, FIRST + 1) == levels
    assert all(each < size for each in most(pool, *range(9))) or size <= 2


async def test_transactions_leave_the_last_one(dsn: str) -> None:
    """A single statement gets a connection however many transactions are open or wait."""
    async with closing(Pool(dsn, max_size=3, kept=2)) as pool, trio.open_nursery() as nursery:
        ended = 0

        async def use() -> None:
            nonlocal ended
            async with pool.for_transaction(), pool.for_transaction():
                await ask(pool)
            ended += 1

        for _ in range(20):
            nursery.start_soon(use)
        with trio.fail_after(20):
            while ended < 20:
                await ask(pool)
    assert pool.stats.opened <= 3


async def test_in_order_over_all_purposes(dsn: str) -> None:
    """Who may not have one yet is passed over; who may is served in the order of coming."""
    served: list[str] = []

    async def use(pool: Pool, name: str, purpose: int) -> None:
        async with pool.connection(purpose):
            served.append(name)
            await trio.lowlevel.checkpoint()

    async with (
        closing(Pool(dsn, max_size=2, kept=1)) as pool,
        trio.open_nursery() as nursery,
        pool.connection(FIRST),
    ):
        async with pool.connection():
            for name, purpose in [("a", FIRST), ("b", SINGLE), ("c", FIRST), ("d", SINGLE)]:
                nursery.start_soon(use, pool, name, purpose)
                await trio.testing.wait_all_tasks_blocked()
        while len(served) < 2:
            await trio.lowlevel.checkpoint()
        assert served == ["b", "d"]
    assert served == ["b", "d", "a", "c"]


async def test_another_size(dsn: str) -> None:
    """A pool that grows serves who waits; one that shrinks closes what is too much."""
    async with (
        closing(Pool(dsn, max_size=1)) as pool,
        trio.open_nursery() as nursery,
        pool.connection(),
    ):
        nursery.start_soon(pid_of, pool)
        await trio.testing.wait_all_tasks_blocked()
        assert pool.stats.waiting == 1
        pool.resize(3, 0)
        while pool.stats.waiting or pool.stats.in_use > 1:
            await trio.lowlevel.checkpoint()
        assert pool.stats.idle == 1
        async with pool.connection(), pool.connection():
            pool.resize(2, 0)
        assert pool.stats.idle == 1
        pool.resize(1, 0)
        assert (pool.stats.idle, pool.stats.in_use) == (0, 1)


async def test_cancelled_at_every_moment(dsn: str) -> None:
    """Calls that are cancelled while they wait, or as they are served, lose no slot."""
    rng = random.Random("slots")
    async with closing(Pool(dsn, max_size=3, kept=2)) as pool:

        async def use(purpose: int) -> None:
            for _ in range(50):
                with trio.move_on_after(rng.choice([0, 0.0005, 0.002, 1])):
                    async with pool.connection(purpose):
                        assert pool.stats.in_use <= 3
                        await trio.sleep(rng.random() / 1000)

        async with trio.open_nursery() as nursery:
            for purpose in (SINGLE, FIRST_OF_ATTEMPT, FIRST, FIRST + 1) * 3:
                nursery.start_soon(use, purpose)
        assert (pool.stats.in_use, pool.stats.waiting, pool.slots.in_transactions) == (0, 0, 0)


async def test_a_server_that_takes_no_more(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked again, ever more slowly and by one at a time, and what comes back is taken."""
    autojump_clock.autojump_threshold = 0.01
    tries = 0
    full = True

    async def connect() -> Connection:
        nonlocal tries
        tries += 1
        await trio.lowlevel.checkpoint()
        raise (
            psycopg.errors.TooManyConnections("sorry")
            if full
            else psycopg.ProgrammingError("mended")
        )

    pool = Pool("", max_size=20, connect=connect)

    async def fail(error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            await ask(pool)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(fail, PoolTimeout, "the server takes no more: sorry")
    assert 30 <= tries <= 100
    full = False
    await fail(psycopg.ProgrammingError, "mended")
    assert pool.stats.in_use == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]


# -- what is lent works -----------------------------------------------------------------------


async def test_dead_connection_is_replaced(pool: Pool, conn: Connection) -> None:
    """A connection that died while idle is found at checkout, without asking it."""
    pid = await pid_of(pool)
    await kill(conn, pid)

    async with pool.connection() as fresh:
        assert fresh.info.backend_pid != pid
        assert await fresh.fetch("select 1") == [(1,)]
    assert pool.stats.dead == 1


async def test_silent_connection_is_replaced(virtual_time: VirtualTime, dsn: str) -> None:
    """One idle for longer than `ping_after` has to answer first, and has 5 s to do so."""
    async with proxied(dsn) as proxy, closing(Pool(proxy.dsn, ping_after=30)) as pool:
        pid = await pid_of(pool)
        await trio.sleep(31)
        assert await pid_of(pool) == pid
        await trio.sleep(31)
        proxy.links[0].blackhole()
        pids: list[int] = []

        async def ask() -> None:
            pids.append(await pid_of(pool))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            took = await pass_time_until(virtual_time, proxy, lambda: bool(pids), within=60)

    assert pids != [pid]
    assert took == PING_TIMEOUT
    assert pool.stats.dead == 1


async def test_broken_connection_is_dropped(pool: Pool, conn: Connection) -> None:
    """A connection that broke in use is not lent again."""
    async with pool.connection() as broken:
        await kill(conn, broken.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            await broken.fetch("select 1")
    assert pool.stats.dead == 1
    async with pool.connection() as fresh:
        assert fresh is not broken


async def test_open_transaction_is_rolled_back(pool: Pool, conn: Connection) -> None:
    """A transaction left open does not survive the block, nor cost the connection."""
    await conn.execute("create table t (i int)")
    async with pool.connection() as lent:
        await lent.execute("begin")
        await lent.execute("insert into t values (1)")
    async with pool.connection() as again:
        assert again is lent
        assert await again.fetch("select i from t") == []
    assert pool.stats.dead == 0


async def test_unfinished_connection_is_dropped(pool: Pool) -> None:
    """A connection that comes back in the middle of something is closed."""
    async with pool.connection() as lent:
        lent.pgconn.send_query(b"select pg_sleep(60)")

    assert lent.closed
    assert pool.stats.dead == 1


async def test_changed_autocommit(pool: Pool) -> None:
    """A connection that would not commit what its next user does is not kept."""
    async with pool.connection() as lent:
        await lent.set_autocommit(False)
    async with pool.connection() as fresh:
        assert fresh.autocommit


async def test_demoted_primary_is_dropped(pool: Pool) -> None:
    """A connection on which writing has become impossible is not kept."""
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        async with pool.connection() as lent:
            await lent.execute("set default_transaction_read_only = on")
            await lent.execute("create table t (i int)")

    assert pool.stats.dead == 1


async def test_idle_and_old_connections_are_retired(
    dsn: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Connections idle for `max_idle` or older than `max_lifetime` make room for new ones."""
    autojump_clock.autojump_threshold = float("inf")
    async with closing(Pool(dsn, max_idle=100, max_lifetime=250, ping_after=1e9)) as pool:
        first = await pid_of(pool)
        autojump_clock.jump(99)
        assert await pid_of(pool) == first
        autojump_clock.jump(101)
        second = await pid_of(pool)
        assert second != first
        for _ in range(2):
            autojump_clock.jump(90)
            assert await pid_of(pool) == second
        autojump_clock.jump(90)
        assert await pid_of(pool) != second
        assert pool.stats.retired == 2
        assert pool.stats.dead == 0


async def test_connect_failure_is_raised_at_once(dsn: str) -> None:
    """A failure to connect reaches the caller, and costs no slot."""
    attempts = 0

    async def connect() -> Connection:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise psycopg.OperationalError("away")
        return await Connection.connect(dsn)

    async with closing(Pool(dsn, max_size=1, connect=connect)) as pool:
        for _ in range(2):
            with pytest.raises(psycopg.OperationalError, match="away"):
                await pid_of(pool)
        assert await pid_of(pool)


# -- closing ----------------------------------------------------------------------------------


async def test_closed_pool(pool: Pool) -> None:
    """After `aclose()` waiters and later callers get `Closed`; those in use may finish."""

    async def wait() -> None:
        with pytest.raises(Closed):
            await pid_of(pool)

    async with trio.open_nursery() as nursery, pool.connection() as lent, pool.connection():
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await pool.aclose()
        await pool.aclose()
        assert await lent.fetch("select 1") == [(1,)]
    assert lent.closed
    with pytest.raises(Closed):
        await pid_of(pool)


async def test_closed_while_connecting(dsn: str) -> None:
    """A connection that was being opened when the pool was closed is closed."""
    opened: list[Connection] = []

    async def connect() -> Connection:
        opened.append(await Connection.connect(dsn))
        await short_lived.aclose()
        return opened[0]

    short_lived = Pool(dsn, connect=connect)
    with pytest.raises(Closed):
        await pid_of(short_lived)
    assert opened[0].closed


# -- all at once --------------------------------------------------------------------------------


async def user(pool: Pool, rng: random.Random, lent: set[Connection]) -> None:
    for _ in range(60):
        with trio.move_on_after(rng.choice((0.001, 0.005, 10))):
            with contextlib.suppress(psycopg.OperationalError, CommitOutcomeUnknown):
                async with pool.connection() as conn:
                    assert conn not in lent, "one connection lent twice"
                    assert pool.stats.in_use <= pool.max_size
                    lent.add(conn)
                    try:
                        number = rng.randrange(1_000_000)
                        async with conn.transaction():
                            assert await conn.fetch("select %s::int", (number,)) == [(number,)]
                            await conn.execute("select pg_sleep(%s)", (rng.random() / 1000,))
                    finally:
                        lent.remove(conn)


async def killer(conn: Connection, rng: random.Random, no_more: trio.Event) -> None:
    # Each kill is waited for: one that was still under way when the users had ended struck the
    # connection that the test looked at afterwards.
    while not no_more.is_set():
        await conn.fetch(
            "select pg_terminate_backend(pid, 10000) from (select pid from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
            " order by random() limit 1) as victim"
        )
        await trio.sleep(rng.uniform(0, 0.05))


async def test_chaos(dsn: str, conn: Connection) -> None:
    """Under cancellations and killed backends no slot is lost and no connection shared."""
    rng = random.Random("pool")
    lent: set[Connection] = set()
    async with closing(Pool(dsn, max_size=4)) as pool:
        async with trio.open_nursery() as chaos:
            no_more = trio.Event()
            chaos.start_soon(killer, conn, rng, no_more)
            async with trio.open_nursery() as users:
                for _ in range(12):
                    users.start_soon(user, pool, rng, lent)
            no_more.set()

        stats = pool.stats
        assert (stats.in_use, stats.waiting) == (0, 0)
        assert stats.dead > 0
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                each = await stack.enter_async_context(pool.connection())
                assert await each.fetch("select 1") == [(1,)]
            assert pool.stats.in_use == 4
