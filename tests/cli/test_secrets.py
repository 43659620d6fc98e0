from __future__ import annotations

import pytest

from nursery_queue._core._secrets import redacted, suspicious
from nursery_queue.cli import main


SECRET = "tOpsEcret"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"postgresql://me:{SECRET}@host/db", "postgresql://me:***@host/db"),
        (f"postgresql://:{SECRET}@host/db", "postgresql://:***@host/db"),
        (f"x postgres://me:a@{SECRET}@h:5/db?a=b y", "x postgres://me:***@h:5/db?a=b y"),
        (f"postgresql+asyncpg://me:{SECRET}@h", "postgresql+asyncpg://me:***@h"),
        (f"postgresql://h/db?password={SECRET}&user=me", "postgresql://h/db?password=***&user=me"),
        (f"host=h password={SECRET} user=me", "host=h password=*** user=me"),
        (f"host=h password = {SECRET}", "host=h password = ***"),
        (rf"password=a\ {SECRET} user=me", "password=*** user=me"),
        (f"password='a b\\' {SECRET}' user=me", "password=*** user=me"),
        (f"sslpassword={SECRET} user=me", "sslpassword=*** user=me"),
        (f"password=a&{SECRET}'x user=me", "password=*** user=me"),
        (f"PGPASSWORD={SECRET}", "PGPASSWORD=***"),
        ("http://host/a@b", "http://host/a@b"),
        ("the password of 'me' is wrong", "the password of 'me' is wrong"),
        ("host=h user=me", "host=h user=me"),
    ],
)
def test_passwords_are_taken_out_of_any_text(text: str, shown: str) -> None:
    """A DSN of either form loses its password and nothing else."""
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me@host/db",
        "postgresql://me:x%40y@host:5432/db?sslmode=require",
        "postgresql://me@h1:1,h2:2/db",
        "postgresql://me@[::1]:5432/db",
        "postgresql:///db?host=/tmp/a@b",
        "postgresql://",
        "host=a@b password=x@y",
        "",
    ],
)
def test_a_sound_dsn_is_not_suspicious(dsn: str) -> None:
    """What libpq reads as it was meant passes."""
    assert suspicious(dsn) is None


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://me:{SECRET}@{SECRET}@host/db",
        f"postgresql://me:{SECRET}/{SECRET}@host/db",
        f"postgresql://me:12/{SECRET}@host/db",
        f"postgresql://me:{SECRET}?{SECRET}@host/db",
        f"postgresql://me:{SECRET}%zz@host/db",
        f"postgresql://me:{SECRET}@host:port/db",
        f"mysql://me:{SECRET}@host/db",
        f"host=h password=x {SECRET}",
        f"host=h password='{SECRET}",
        f"host=h password=x {SECRET}=y",
        f"password={SECRET} host=127.0.0.1 port=1",
        f"postgresql://me:{SECRET}@127.0.0.1:1/db",
        f"postgresql://me:{SECRET}@127.0.0.1:99999/db",
        f"postgresql://me:{SECRET}@127.0.0.1:1/db?sslmode=odd",
    ],
)
def test_no_error_repeats_the_password(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    """However broken the DSN, no part of the password is printed, and it is an error."""
    code = main(["status", "--dsn", dsn])

    told = capsys.readouterr()
    assert code in {2, 69}
    assert "Error: " in told.err
    assert SECRET not in told.err + told.out
