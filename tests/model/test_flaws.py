"""The model finds what it is for: stores with one flaw each."""

from __future__ import annotations

from typing import Any, LiteralString, cast

import attrs
import psycopg
import pytest

from nursery_queue._core._model import Held, Settlement
from nursery_queue._core._outcome import settle_lost
from nursery_queue._pg import (
    _postgres_schedules as _schedules,
    _postgres_store as _store,
    _postgres_transaction as _transaction,
    _sessions,
    _sweeper,
)
from nursery_queue._pg._sql import query
from nursery_queue.testing import VirtualTime
from tests.model.search import search


EXAMPLES = 1500  # some flaws need two hundred of them
pytestmark = pytest.mark.timeout(900)  # where one takes a second


@attrs.frozen
class Flaw:
    """Text of a statement, or of an SQL function, and what it is replaced by."""

    place: str
    right: str
    wrong: str
    also: Flaw | None = None


FLAWS = {
    "a claim does not look at the limit": Flaw(
        "function room", "greatest(0, max_running - (", "greatest(max_running + 9, ("
    ),
    "a claim does not look at the limit of a key": Flaw(
        "function open_lanes",
        "greatest(0, rule.max_running_per_key",
        "greatest(9, rule.max_running_per_key",
    ),
    "a claim does not look at the rate": Flaw(
        "function room", "rate_burst) end\n", "rate_burst) + 9 end\n"
    ),
    "a claim does not look at the rate of a key": Flaw(
        "function open_lanes",
        "may := least(may, nursery_queue.tokens(",
        "may := greatest(may, nursery_queue.tokens(",
    ),
    "a start does not use up the rate": Flaw("function use_rates", "starts > 0", "starts > 99"),
    "a debounced call does not start the wait anew": Flaw(
        "function replace", "set due_at = due where", "set due_at = due_at where"
    ),
    "a debounced call replaces what has started": Flaw(
        "function hold",
        "exit when exists (select from nursery_queue.attempt",
        "exit when false and exists (select from nursery_queue.attempt",
    ),
    "a claim does not look at the pause": Flaw(
        "function room",
        "coalesce(array_agg(name) filter (where paused), '{}')",
        "'{}'",
        also=Flaw("function walk", "(paused or max_running = 0)", "false"),
    ),
    "a settlement does not look at the fence": Flaw(
        "settle",
        "and running.epoch = settled.epoch\n                            and",
        "and",
        also=Flaw("settle_successes", "and running.epoch = settled.epoch\n", "\n"),
    ),
    "a settlement does not look whether a cancel was requested": Flaw(
        "settle", "and (settled.final or running.cancel_requested_at is null)", ""
    ),
    "a settlement keeps the dedup key": Flaw(
        "settle",
        "(select task_id from closed where final))",
        "(select task_id from closed where false))",
    ),
    "the settlement of a success keeps the dedup key": Flaw(
        "settle_successes", "(select task_id from closed))", "(select task_id from closed limit 0))"
    ),
    "a sweep takes what living workers hold": Flaw(
        "declare_dead", "heartbeat_at <", "heartbeat_at - interval '1 hour' <"
    ),
    "a sweep forgets what dead workers hold": Flaw(
        "abandoned",
        "where not exists (select from nursery_queue.worker",
        "where false and not exists (select from nursery_queue.worker",
    ),
    "a completion is stored twice": Flaw(
        "function tell",
        "as ended (id, asked, context, ending)",
        "as ended (id, asked, context, ending) cross join generate_series(1, 2)",
    ),
    "a completion is not stored after a cancel": Flaw(
        "function cancel_many", "where on_complete is not null", "where false"
    ),
    "a task is ready before it is due": Flaw(
        "promote", "due_at <= nursery_queue.now()", "due_at <= nursery_queue.now() + interval '2 s'"
    ),
    "a claim uses an epoch again": Flaw(
        "function claim", "epoch + 1 as epoch", "attempt + 1 as epoch"
    ),
    "tasks are deleted too soon": Flaw(
        "prune",
        "expires_at <= nursery_queue.now()",
        "expires_at <= nursery_queue.now() + interval '1 hour'",
    ),
    "a paused schedule fires": Flaw(
        "take_schedules",
        "where not paused and",
        "where",
        also=Flaw("next_schedule", "where not paused and", "where"),
    ),
    "a schedule does not see that its last task runs": Flaw(
        "take_schedules", "<> '{}' as busy", "= '{0}' as busy"
    ),
    "a tick does not cancel the task before": Flaw(
        "function fire", "where firing.cancels and", "where false and"
    ),
    "a tick that is skipped is not counted": Flaw(
        "function fire", "skipped = known.skipped + firing.skipped", "skipped = known.skipped"
    ),
    "a schedule forgets which ticks it has been through": Flaw(
        "function fire", "set since = firing.since", "set since = greatest(known.since, made.last)"
    ),
}


# Found by hundreds of examples: a minute each, or more (nox -s flaws).
RARE = {
    "a claim does not look at the limit of a key",
    "a claim does not look at the rate of a key",
    "a debounced call replaces what has started",
    "a schedule does not see that its last task runs",
    "a schedule forgets which ticks it has been through",
    "a tick does not cancel the task before",
    "a tick that is skipped is not counted",
    "the settlement of a success keeps the dedup key",
}


def install(flaw: Flaw, dsn: str, patch: pytest.MonkeyPatch) -> None:
    """Make the store wrong in one place, and in the other that would make up for it."""
    flaws = [flaw] if flaw.also is None else [flaw, flaw.also]
    statements = {each.place: each for each in flaws if not each.place.startswith("function ")}

    def wrong(name: str, schema: str) -> LiteralString:
        text = query(name, schema)
        return flawed(text, statements[name]) if name in statements else text

    for module in (_schedules, _sessions, _store, _sweeper, _transaction):
        patch.setattr(module, "query", wrong)
    with psycopg.connect(dsn, autocommit=True) as session:
        for each in flaws:
            if each.place not in statements:
                name = each.place.removeprefix("function ")
                asked = session.execute(
                    "select pg_get_functiondef(%s::regproc)", [f"nursery_queue.{name}"]
                )
                ((text,),) = asked.fetchall()
                session.execute(flawed(text, each))


def flawed(text: str, flaw: Flaw) -> LiteralString:
    assert flaw.right in text, f"{flaw.place} is not what it was: {flaw}"
    return cast("LiteralString", text.replace(flaw.right, flaw.wrong))  # type: ignore[redundant-cast]  # mypy takes it for str


async def find(clock: VirtualTime, dsn: str, *, compares: bool) -> None:
    """Find something wrong; some flaws break a constraint of the tables before a rule."""
    with pytest.raises((AssertionError, psycopg.IntegrityError)):
        await search(clock, dsn, examples=EXAMPLES, start=0, shrink=False, compares=compares)


@pytest.mark.parametrize("name", FLAWS, ids=[name.replace(" ", "-") for name in FLAWS])
async def test_a_broken_rule(
    virtual_time: VirtualTime,
    migrated: str,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
    name: str,
) -> None:
    """A store that breaks one rule is found out, without another to compare it with."""
    if name in RARE and not pytestconfig.getoption("--all-flaws"):
        pytest.skip("takes minutes to be found: with --all-flaws, as nox -s flaws has it")
    flaw = FLAWS[name]
    install(flaw, migrated, monkeypatch)
    await find(virtual_time, migrated, compares=False)


async def test_losses_that_are_not_counted(
    virtual_time: VirtualTime, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is a sweep after which a task can be lost again and again."""

    def forgetful(held: Held, **how: Any) -> Settlement:
        return attrs.evolve(settle_lost(held, **how), lost=held.lost)

    monkeypatch.setattr(_sweeper, "settle_lost", forgetful)
    await find(virtual_time, migrated, compares=False)


async def test_a_difference(
    virtual_time: VirtualTime, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no rule speaks of shows beside a store in memory."""
    flaw = Flaw(
        "settle",
        "result::jsonb, error_type, error_message\n      from",
        "null, null, null\n      from",
    )
    install(flaw, migrated, monkeypatch)
    await find(virtual_time, migrated, compares=True)
