"""What a DSN may look like, and what is said of one that cannot be read."""

from __future__ import annotations

from urllib.parse import urlencode

import psycopg
import pytest

from psycopg.conninfo import conninfo_to_dict

import nursery_queue as nq


async def test_a_url_may_name_a_driver(dsn: str) -> None:
    """A URL that SQLAlchemy takes is taken as it is, by `migrate` and by `connect`."""
    told = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    url = f"postgresql+psycopg:///{told.pop('dbname')}?{urlencode(told)}"

    assert await nq.migrate(url)
    async with nq.connect(url) as client:
        assert (await client.enqueue("later")).created


@pytest.mark.parametrize(
    "dsn",
    [
        "mysql+pymysql://me:hunter2@localhost/shop",
        "me:hunter2@localhost/shop",
        "postgresql://me:hunter2%@localhost/shop",
        "postgresql+asyncpg://me:hunter2@localhost/shop?ssl=hunter2&prefer_hunter2=on",
        "password='hunter2 dbname=shop",
        "passwort=hunter2 dbname=shop",
    ],
)
async def test_a_dsn_that_cannot_be_read_is_not_shown(dsn: str) -> None:
    """The error says what is wrong with it, and nothing of what may be its password."""
    with pytest.raises(psycopg.ProgrammingError, match="the DSN is neither a URL") as migrating:
        await nq.migrate(dsn)
    with pytest.raises(psycopg.ProgrammingError, match="the DSN is neither a URL") as connecting:
        async with nq.connect(dsn):
            raise AssertionError
    assert "hunter2" not in f"{migrating.value} {connecting.value}"
