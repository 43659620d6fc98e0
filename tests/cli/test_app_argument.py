from __future__ import annotations

import json
import sys

from pathlib import Path

import pytest

from nursery_queue.cli._failures import ProblemError
from nursery_queue.cli._load import load_app
from tests.cli.runs import Run


@pytest.mark.parametrize(
    ("where", "message", "hint"),
    [
        ("shop", "'shop' does not name an application", "MODULE:ATTRIBUTE"),
        ("shop:", "does not name an application", "MODULE:ATTRIBUTE"),
        (":app", "does not name an application", "MODULE:ATTRIBUTE"),
        ("shop.py", "does not name an application", "shop:app"),
        ("nowhere_at_all:app", "no module 'nowhere_at_all'", "looked in "),
        ("nowhere_at_all.tasks:app", "no module 'nowhere_at_all'", "looked in "),
        ("shop.tasks:app", "no module 'shop.tasks'", "looked in "),
        ("shop:missing", "module 'shop' has no 'missing'", "did you mean shop:app?"),
        ("shop:number.x", "module 'shop' has no 'number.x'", "did you mean shop:app?"),
        ("shop:number", "is of type int, not an App", "did you mean shop:app?"),
        ("shop:hello", "is of type TaskType, not an App", "did you mean shop:app?"),
    ],
)
def test_what_names_no_application_is_told(cli: Run, where: str, message: str, hint: str) -> None:
    """APP that is wrong in any way is a configuration error that says which way."""
    done = cli("worker", where)

    assert done.returncode == 2
    assert message in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nursery_queue as nq\nnq.App().schedule('s', nq.Cron('61 * * * *'), 't')", "'61'"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("from os import nothing_of_the_kind", "ImportError"),
        ("x = = 1", "SyntaxError"),
        ("import sys\nsys.exit('bye')", "SystemExit: bye"),
        ("raise ValueError('odd')", "ValueError: odd"),
    ],
)
def test_an_error_inside_the_module_is_not_a_missing_module(
    cli: Run, project: Path, code: str, message: str
) -> None:
    """What the module itself raises is told as its own failure, with file and line."""
    (project / "broken.py").write_text(f"\n{code}\n")

    done = cli("worker", "broken:app")

    assert done.returncode == 2
    assert "importing 'broken' failed" in done.stderr
    assert message in done.stderr
    assert "broken.py" in done.stderr
    assert "there is no module" not in done.stderr
    assert "Traceback" not in done.stderr


def test_with_v_there_is_a_traceback(cli: Run, project: Path) -> None:
    """`-v` shows where in the module it failed."""
    (project / "broken.py").write_text("def f():\n    return 1 / 0\nf()\n")

    done = cli("worker", "broken:app", "-v")

    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "return 1 / 0" in done.stderr


def test_with_json_logs_the_error_is_a_log_line(cli: Run) -> None:
    """With --log-format json stderr is JSON to the last line."""
    done = cli("worker", "shop:missing", "--log-format", "json")

    (line,) = done.stderr.splitlines()
    record = json.loads(line)
    assert done.returncode == 2
    assert record["level"] == "ERROR"
    assert record["logger"] == "nursery_queue.cli"
    assert "has no 'missing'" in record["message"]


def test_a_dotted_attribute_is_followed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`module:a.b` is attribute b of attribute a."""
    (project / "dotted_one.py").write_text(
        "import nursery_queue\nclass Here:\n    app = nursery_queue.App()\n"
    )
    monkeypatch.setattr(sys, "path", [str(project), *sys.path])

    assert repr(load_app("dotted_one:Here.app")) == "<App with 0 task types>"


def test_a_module_without_an_app_gets_advice(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no App at all, the error says how to make one."""
    (project / "empty_one.py").write_text("x = 1\n")
    monkeypatch.setattr(sys, "path", [str(project), *sys.path])

    with pytest.raises(ProblemError) as caught:
        load_app("empty_one:app")

    assert "nursery_queue.App()" in str(caught.value.hint)
