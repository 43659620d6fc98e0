from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from nursery_queue.cli import main
from nursery_queue.cli._commands import SENTENCES
from nursery_queue.cli._settings import Dsn, Setting
from nursery_queue.cli._worker_command import worker


def settings(*args: str) -> dict[str, Any]:
    """Return what the command `worker` would be called with."""
    with worker.make_context("worker", ["shop:app", *args]) as context:
        return context.params


def pyproject(directory: Path, text: str) -> Path:
    file = directory / "pyproject.toml"
    file.write_text(text)
    return file


LADDER = [
    ("--concurrency", "4", "5", "6", 4, 5, 6, 32),
    ("--lease", "1m", "50", '"40s"', 60.0, 50.0, 40.0, 30.0),
    ("--grace", "0", "1.5", "2.5", 0.0, 1.5, 2.5, 20.0),
    ("--poll-interval", "200ms", "2", "3", 0.2, 2.0, 3.0, 5.0),
    ("--name", "flag", "variable", '"file"', "flag", "variable", "file", None),
    ("--schema", "a", "b", '"c"', "a", "b", "c", "nursery_queue"),
    ("--log-format", "text", "json", '"json"', "text", "json", "json", "text"),
    ("--log-level", "error", "Debug", '"warning"', "ERROR", "DEBUG", "WARNING", None),
    ("--prefetch", "3", "auto", "5", 3, "auto", 5, "auto"),
    ("--processes", "2", "3", "4", 2, 3, 4, 1),
    (
        "--queue",
        "a:2",
        "b:3,c",
        '["d", "e:1"]',
        (("a", 2),),
        (("b", 3), ("c", None)),
        (("d", None), ("e", 1)),
        (),
    ),
]


@pytest.mark.parametrize(
    ("flag", "on_flag", "variable", "in_file", "first", "second", "third", "default"),
    LADDER,
    ids=[row[0] for row in LADDER],
)
def test_flag_then_environment_then_pyproject_then_default(
    clean: Path,
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    on_flag: str,
    variable: str,
    in_file: str,
    first: object,
    second: object,
    third: object,
    default: object,
) -> None:
    """A setting is the flag's, else the environment's, else pyproject.toml's, else the default."""
    key = flag.removeprefix("--").replace("-", "_")
    found = [settings()[key]]
    monkeypatch.chdir(project_with(clean, f"[tool.nursery_queue]\n{key} = {in_file}\n"))
    found.append(settings()[key])
    monkeypatch.setenv(f"NURSERY_QUEUE_{key.upper()}", variable)
    found.append(settings()[key])
    found.append(settings(flag, on_flag)[key])

    assert found == [default, third, second, first]


def project_with(directory: Path, text: str) -> Path:
    """Return a new directory below *directory* with a pyproject.toml."""
    below = directory / "below"
    below.mkdir()
    pyproject(below, text)
    return below


@pytest.mark.parametrize("key", ["no_listen", "drain"])
def test_a_switch_has_its_twins(clean: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """A flag without a value is true or false in the environment and in pyproject.toml."""
    found = [settings()[key]]
    monkeypatch.chdir(project_with(clean, f"[tool.nursery_queue]\n{key} = true\n"))
    found.append(settings()[key])
    monkeypatch.setenv(f"NURSERY_QUEUE_{key.upper()}", "0")
    found.append(settings()[key])
    monkeypatch.setenv(f"NURSERY_QUEUE_{key.upper()}", "1")
    found.append(settings()[key])

    assert found == [False, True, False, True]


def test_every_flag_of_the_worker_has_its_twins() -> None:
    """All options of `worker` are settings, but for --help and what is not for users."""
    others = [
        option.name
        for option in worker.params
        if isinstance(option, click.Option)
        and not isinstance(option, Setting)
        and not option.hidden
    ]

    assert others == []


def test_where_the_dsn_comes_from(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The DSN: flag, our variable, DATABASE_URL, libpq's variables, pyproject.toml, default."""
    found: list[Dsn] = [settings()["dsn"]]
    below = project_with(clean, '[tool.nursery_queue]\ndsn = "dbname=file"\n')
    monkeypatch.chdir(below)
    found.append(settings()["dsn"])
    monkeypatch.setenv("PGHOST", "elsewhere")
    found.append(settings()["dsn"])
    monkeypatch.setenv("DATABASE_URL", "dbname=url")
    found.append(settings()["dsn"])
    monkeypatch.setenv("NURSERY_QUEUE_DSN", "dbname=variable")
    found.append(settings()["dsn"])
    found.append(settings("--dsn", "dbname=flag")["dsn"])

    assert found == [
        Dsn("", "the defaults of libpq"),
        Dsn("dbname=file", str(below / "pyproject.toml")),
        Dsn("", "PGHOST"),
        Dsn("dbname=url", "DATABASE_URL"),
        Dsn("dbname=variable", "NURSERY_QUEUE_DSN"),
        Dsn("dbname=flag", "--dsn"),
    ]


@pytest.mark.parametrize("name", ["PGPASSWORD", "PGUSER", "PGSSLMODE"])
def test_what_completes_a_dsn_does_not_replace_it(
    clean: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A variable of libpq that names no place leaves the DSN of pyproject.toml in force."""
    monkeypatch.setenv(name, "x")
    monkeypatch.chdir(project_with(clean, '[tool.nursery_queue]\ndsn = "dbname=file"\n'))

    assert settings()["dsn"].text == "dbname=file"


def test_the_nearest_pyproject_with_our_table_counts(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pyproject.toml above is found past one that says nothing to us; nothing is merged."""
    pyproject(clean, "[tool.nursery_queue]\nconcurrency = 3\ngrace = 1\n")
    below = project_with(clean, "[tool.other]\nconcurrency = 9\n")
    monkeypatch.chdir(below)
    far = settings()
    (below / "deep").mkdir()
    pyproject(below / "deep", "[tool.nursery_queue]\nconcurrency = 4\n")
    monkeypatch.chdir(below / "deep")
    near = settings()

    assert (far["concurrency"], far["grace"]) == (3, 1.0)
    assert (near["concurrency"], near["grace"]) == (4, 20.0)


def test_keys_may_be_written_as_flags_are(clean: Path) -> None:
    """poll-interval is poll_interval."""
    pyproject(clean, "[tool.nursery_queue]\npoll-interval = 9\n")

    assert settings()["poll_interval"] == 9.0


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("threads = 3", "threads"),
        ('concurrency = "3"', "concurrency"),
        ("concurrency = true", "concurrency"),
        ("concurrency = 0", "concurrency"),
        ("concurrency = 3.5", "concurrency"),
        ('lease = "soon"', "lease"),
        ("lease = nan", "lease"),
        ("grace = -1", "grace"),
        ("name = 3", "name"),
        ('queue = ["a:b"]', "queue"),
        ("queue = [3]", "queue"),
        ("no_listen = 1", "no_listen"),
        ('log_format = "xml"', "log_format"),
        ("dsn = 5", "dsn"),
    ],
)
def test_a_wrong_key_or_value_in_pyproject_is_told_with_its_place(
    clean: Path, capsys: pytest.CaptureFixture[str], line: str, key: str
) -> None:
    """Any command refuses a pyproject.toml that is wrong, naming the file and the key."""
    file = pyproject(clean, f"[tool.nursery_queue]\n{line}\n")

    code = main(["migrate", "sql"])

    told = capsys.readouterr()
    assert code == 2
    assert f"{file}: '{key}'" in told.err
    assert told.out == ""


@pytest.mark.parametrize(
    "text",
    ["[tool.nursery_queue", "[tool]\nnursery_queue = 3\n", "tool = 3\n", "[[tool]]\n", "\xff"],
)
def test_a_pyproject_that_cannot_be_read_is_named(
    clean: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """Broken TOML, and a table that is none, are usage errors naming the file."""
    (clean / "pyproject.toml").write_bytes(text.encode("latin-1"))

    assert main(["migrate", "sql"]) == 2
    assert str(clean / "pyproject.toml") in capsys.readouterr().err


def test_help_needs_no_settings(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` works whatever pyproject.toml says."""
    pyproject(clean, "[tool.nursery_queue]\nwrong = 1\n")

    assert main(["worker", "--help"]) == 0
    assert "--concurrency" in capsys.readouterr().out


def test_a_wrong_variable_is_named(
    clean: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the environment has wrong is told with the variable's name."""
    monkeypatch.setenv("NURSERY_QUEUE_CONCURRENCY", "many")

    assert main(["worker", "shop:app"]) == 2
    assert "NURSERY_QUEUE_CONCURRENCY" in capsys.readouterr().err


def test_settings_reach_the_command(
    clean: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The schema of the environment is the one in the SQL that is printed."""
    monkeypatch.setenv("NURSERY_QUEUE_SCHEMA", "elsewhere")

    assert main(["migrate", "sql"]) == 0
    script = capsys.readouterr().out
    assert "elsewhere.task" in script
    assert "nursery_queue.task" not in script


@pytest.mark.parametrize("name", sorted(SENTENCES))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command explains itself, within 80 columns."""
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Usage: nursery-queue {name}")
    assert max(map(len, lines)) <= 80
