"""`why`, and where else the command line says what keeps tasks where they are."""

from __future__ import annotations

import pytest

from tests.cli.printed import lines, objects
from tests.cli.runs import Run
from tests.support.command_line import rows


HIRE = """
    insert into nursery_queue.worker (id, name, host, pid, queues, task_types, lease, started_at,
                                      heartbeat_at)
    values (gen_random_uuid(), 'ada', 'here', 1, '{default}', '{hello}', 3600, now(), now())
"""


@pytest.fixture
def tasks(quick: Run, migrated: str) -> None:
    """Tasks 1 (next), 2 (of a paused queue that none serves) and 3 (later); a worker."""
    rows(migrated, f"with hired as ({HIRE} returning id) select id from hired")
    quick("enqueue", "hello")
    quick("enqueue", "hello", "--queue", "mail")
    quick("enqueue", "hello", "--run-at", "2100-01-01T00:00Z")
    quick("queues", "pause", "mail")


@pytest.mark.usefixtures("tasks")
class TestSomeTasks:
    def test_why(self, quick: Run) -> None:
        """A reason a line, with the task, its state and the code."""
        done = quick("why", "2", "3")

        assert done.returncode == 0
        assert lines(done.stdout) == [
            [
                *("2", "ready", "queue_not_served"),
                "none of the workers alive (1) serves queue mail",
            ],
            ["2", "ready", "queue_paused", "queue mail is paused"],
            ["3", "scheduled", "due_later", "it is due at 2100-01-01 00:00:00.000 UTC"],
        ]

    def test_why_as_json(self, quick: Run) -> None:
        """The same as data, each reason with its own beside its code and text."""
        first, later = objects(quick("why", "1", "3", "--json").stdout)

        assert (first["id"], first["state"]) == (1, "ready")
        assert first["reasons"] == [
            {
                "code": "behind",
                "text": "it is next: it starts as soon as a worker has a slot free",
                "ahead": 0,
                "better": 0,
                "pace": None,
            }
        ]
        assert later["reasons"][0]["at"] == "2100-01-01T00:00:00+00:00"

    @pytest.mark.parametrize("option", [[], ["--json"]])
    def test_why_of_what_is_not_there(self, quick: Run, option: list[str]) -> None:
        """An id that nobody has is an error, and the others are answered all the same."""
        done = quick("why", "99", "1", *option)

        assert done.returncode == 1
        if option:
            unknown, known = objects(done.stdout)
            assert (unknown["state"], unknown["reasons"][0]["code"]) == (None, "unknown")
            assert known["id"] == 1
        else:
            assert [row[0] for row in lines(done.stdout)] == ["1"]
            assert "there is no task 99: it never existed, or has been pruned" in done.stderr

    def test_show(self, quick: Run) -> None:
        """`tasks show` says it, too, in words and as JSON."""
        quick("tasks", "cancel", "1")
        (shown,) = objects(quick("tasks", "show", "2", "--json").stdout)

        text = quick("tasks", "show", "2").stdout
        assert "serves queue mail; queue mail is paused" in text
        assert [each["code"] for each in shown["reasons"]] == ["queue_not_served", "queue_paused"]
        assert "why:" not in quick("tasks", "show", "1").stdout

    @pytest.mark.parametrize(
        ("args", "ids"),
        [
            (["queue_paused"], [2]),
            (["due_later"], [3]),
            (["behind", "--state", "ready"], [1]),
            (["due_later", "--state", "ready"], []),
            (["queue_paused", "--after", "2"], []),
            (["running"], []),
        ],
    )
    def test_list(self, quick: Run, args: list[str], ids: list[int]) -> None:
        """`tasks list` shows those that a reason holds; it combines with the other filters."""
        found = objects(quick("tasks", "list", "--json", "--reason", *args).stdout)

        assert [task["id"] for task in found] == ids

    def test_no_reason(self, quick: Run) -> None:
        """A code that there is not is a usage error that names all of them."""
        done = quick("tasks", "list", "--reason", "laziness")

        assert done.returncode == 2
        assert "'queue_limit'" in done.stderr

    def test_status(self, quick: Run) -> None:
        """`status` names queues with ready tasks that no worker serves, though there is one."""
        found = objects(quick("status", "--json").stdout)

        (not_served,) = [each for each in found if each["kind"] == "queue_not_served"]
        assert not_served == {"kind": "queue_not_served", "queue": "mail", "ready": 1}
        assert ["queue_not_served", "mail", "1"] in lines(quick("status").stdout)
