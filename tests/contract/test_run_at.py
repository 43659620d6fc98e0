"""However an instant is written, a task is due at that instant."""

from __future__ import annotations

import datetime as dt

import pytest

import nursery_queue as nq

from nursery_queue._store import Store


class Spoken(dt.datetime):
    """As a library's own might be."""

    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        del sep, timespec
        return "soon"


def at(**offset: float) -> dt.timezone:
    return dt.timezone(dt.timedelta(**offset))


WHEN = dt.datetime(2090, 1, 2, 3, 4, 5, 6, dt.UTC)
SPELLINGS = {
    "16 hours": WHEN.astimezone(at(hours=16)),
    "almost a day": WHEN.astimezone(at(hours=-23, minutes=-59)),
    "seconds": WHEN.astimezone(at(seconds=-1)),
    "microseconds": WHEN.astimezone(at(microseconds=1)),
    "a class of its own": Spoken.fromisoformat(str(WHEN)),
}


@pytest.mark.parametrize("way", ["one", "many", "keyed", "copied"])
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_an_instant_is_stored_exactly(store: Store, spelling: str, way: str) -> None:
    """With any offset that Python has, and of any class."""
    client = nq.Client(store)
    later = nq.TaskRequest.by_name("later").options(run_at=SPELLINGS[spelling])
    if way == "keyed":
        later = later.options(dedup_key="k")
    refs = await client.enqueue_many([later] * (way == "many") + [later], copy=way == "copied")
    for status in await client.status_many(refs):
        assert status is not None
        assert status.run_at == WHEN
