"""Batches of mutations: each commits alone, and the chat hears of them when the batch is over."""

from __future__ import annotations

import signal

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.examples.serving import Site, locked
from tests.support.command_line import until


pytestmark = pytest.mark.parametrize("site", ["push_batches"], indirect=True)

GOOD: dict[str, object] = {}
ISSUE_7 = "select from issue where id = 7 for update"


def mutation(number: int, name: str, **issue: object) -> dict[str, object]:
    return {"clientID": "c", "id": number, "name": name, "args": [issue]}


def results(answer: httpx.Response) -> dict[int, object]:
    """Return what became of the mutations, by their numbers."""
    assert answer.status_code == 200, answer.text
    return {each["id"]["id"]: each["result"] for each in answer.json()["mutations"]}


def told(site: Site, word: str) -> list[str]:
    """Return what the chat has begun (telling) or finished (told) to hear."""
    lines = [line.split(": ", 1) for line in site.running.lines("stdout")]
    return [text for first, text in lines if first == word]


def issues(site: Site) -> list[tuple[object, ...]]:
    return site.rows("select id, title, open from issue order by id")


def last(site: Site) -> list[tuple[object, ...]]:
    return site.rows("select id, last_mutation from push_client")


def test_the_chat_hears_of_what_is_committed(site: Site) -> None:
    """A failed mutation is undone, counted and not told; the others of its batch are, in order."""
    answer = site.push(
        mutation(1, "create", id=7, title="It rains"),
        mutation(2, "close", id=8),
        mutation(3, "create", id=9, title="It snows"),
        mutation(4, "close", id=7),
    )

    error = {"error": "app", "message": "there is no open issue 8"}
    assert results(answer) == {1: GOOD, 2: error, 3: GOOD, 4: GOOD}
    assert told(site, "told") == []  # the answer has not waited for it
    assert issues(site) == [(7, "It rains", False), (9, "It snows", True)]
    assert last(site) == [("c", 4)]
    site.running.line("^told", of="stdout", count=3)
    expected = ["opened: It rains", "opened: It snows", "closed: 7"]
    assert told(site, "telling") == expected
    assert sorted(told(site, "told")) == sorted(expected)


def test_a_batch_that_comes_again_changes_nothing(site: Site) -> None:
    """A mutation that has been processed, in vain or not, is neither applied nor told again."""
    batch = [mutation(1, "create", id=7, title="It rains"), mutation(2, "close", id=8)]
    site.push(*batch)

    again = results(site.push(*batch, mutation(3, "close", id=7)))

    assert again == {1: {"error": "alreadyProcessed"}, 2: {"error": "alreadyProcessed"}, 3: GOOD}
    site.running.line("^telling: closed", of="stdout")
    assert told(site, "telling") == ["opened: It rains", "closed: 7"]
    assert issues(site) == [(7, "It rains", False)]


def test_nothing_is_told_before_the_batch_has_ended(site: Site) -> None:
    """While a later mutation is still going on, an earlier one is committed but not told."""
    site.push(mutation(1, "create", id=7, title="It rains"))
    site.running.line("^told: opened: It rains", of="stdout")
    with ThreadPoolExecutor() as pool:
        with locked(site.dsn, ISSUE_7):
            batch = [mutation(2, "create", id=8, title="It snows"), mutation(3, "close", id=7)]
            answer = pool.submit(site.push, *batch)
            until(lambda: site.waits("update issue"), "a mutation that waits for the lock")
            site.push()  # the server has turned to everything else meanwhile
            assert len(issues(site)) == 2
            assert told(site, "telling") == ["opened: It rains"]
        assert results(answer.result()) == {2: GOOD, 3: GOOD}

    site.running.line("^telling: closed: 7", of="stdout")
    assert told(site, "telling") == ["opened: It rains", "opened: It snows", "closed: 7"]


def test_sigterm_lets_callbacks_end(site: Site) -> None:
    """Told to stop in the midst of a callback of 3 s, it takes no more requests and waits."""
    site.push(mutation(1, "create", id=7, title="It rains"))
    site.running.line("^telling", of="stdout")

    site.running.send(signal.SIGTERM)
    until(lambda: not site.is_listening, "the end of the server")
    before = told(site, "told")
    code = site.running.code()

    assert (before, told(site, "told"), code) == ([], ["opened: It rains"], 0)
    assert site.running.process.stderr is not None
    assert "Traceback" not in site.running.stderr


def test_sigterm_ends_a_batch_between_two_mutations(site: Site) -> None:
    """The mutation in hand commits and is told, the next one is not begun: push it again."""
    site.push(mutation(1, "create", id=7, title="It rains"))
    with ThreadPoolExecutor() as pool:
        with locked(site.dsn, ISSUE_7):
            batch = [mutation(2, "close", id=7), mutation(3, "create", id=8, title="It snows")]
            answer = pool.submit(site.push, *batch)
            until(lambda: site.waits("update issue"), "a mutation that waits for the lock")
            site.running.send(signal.SIGTERM)
            until(lambda: not site.is_listening, "the end of the server")
        assert answer.result().status_code == 503

    assert site.running.code() == 0
    assert (issues(site), last(site)) == ([(7, "It rains", False)], [("c", 2)])
    assert sorted(told(site, "told")) == ["closed: 7", "opened: It rains"]
