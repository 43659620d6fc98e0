"""`enqueue` stores tasks as their type is declared."""

from __future__ import annotations

from pathlib import Path

from tests.cli.runs import Run
from tests.support.command_line import rows


SEEN = "select queue, priority, on_complete ->> 'task_type' from nursery_queue.task order by id"
MORE = '''

@app.task(name="loud", queue="mail", priority=3, on_complete="told")
async def loud() -> None:
    """Do nothing."""
'''


def test_enqueue_with_the_app(quick: Run, project: Path, migrated: str) -> None:
    """The App that a flag or the environment names says what no option says."""
    (project / "loudly.py").write_text(f"import nursery_queue as nq\n\napp = nq.App(){MORE}")
    assert quick("enqueue", "loud", "--app", "loudly:app").returncode == 0
    assert quick("enqueue", "loud", env={"NURSERY_QUEUE_APP": "loudly:app"}).returncode == 0
    assert quick("enqueue", "loud", "--app", "loudly:app", "--priority", "0").returncode == 0

    assert rows(migrated, SEEN) == [("mail", 3, "told"), ("mail", 3, "told"), ("mail", 0, "told")]


def test_enqueue_without_the_app(cli: Run, project: Path, migrated: str) -> None:
    """Once a worker has run, what it declares is known without the App."""
    with (project / "shop.py").open("a") as file:
        file.write(MORE)
    assert cli("worker", "shop:app", "--drain").returncode == 0
    assert cli("enqueue", "loud").returncode == 0

    assert rows(migrated, SEEN) == [("mail", 3, "told")]


def test_enqueue_with_an_app_that_is_not_there(quick: Run, migrated: str) -> None:
    """A wrong App is named, and nothing is stored."""
    done = quick("enqueue", "hello", "--app", "nowhere:app")

    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert rows(migrated, SEEN) == []
