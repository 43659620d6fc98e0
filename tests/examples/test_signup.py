"""The sign-ups: a person and the mail to welcome them are there together, or not at all."""

from __future__ import annotations

import http.client
import json
import signal

from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest

from tests.examples.serving import Site, drain, locked
from tests.support.command_line import until


EVERYWHERE = ["fastapi_signup", "flask_signup", "django_signup", "starlette_signup"]
# What they make of SIGTERM is theirs: uvicorn ends well and then dies of it, the development
# servers of Flask and Django just die, and ours on trio ends well.
END = dict.fromkeys(EVERYWHERE, -signal.SIGTERM) | {"starlette_signup": 0}
# What holds a request up at one step.
WELCOME = "lock table nursery_queue.task in share mode"
ENQUEUE = "nursery_queue.store("
THANKS = "select from person where email = 'ann@example.org' for update"

everywhere = pytest.mark.parametrize("site", EVERYWHERE, indirect=True)


@everywhere
def test_a_person_is_stored_with_a_task_that_runs(site: Site) -> None:
    """A good request leaves the person and one task, which a worker runs; SIGTERM ends it all."""
    answer = site.sign_up("ann@example.org")

    assert (answer.status_code, site.people) == (201, ["ann@example.org"])
    task = answer.json()["task"]
    printed = [] if site.name == "starlette_signup" else drain(site)
    state = "select state, attempt from nursery_queue.task_status where id = %s"
    until(lambda: site.rows(state, [task]) == [("succeeded", 1)], "the success of the task")
    assert site.mails == ["ann@example.org"]
    assert site.stop() == END[site.name]
    assert "Welcome, ann@example.org!" in printed + site.running.lines("stdout")
    assert site.rows("select from nursery_queue.worker") == []


@everywhere
def test_an_aborted_request_leaves_nothing(site: Site) -> None:
    """A request that fails after it has enqueued undoes both, and the next one is served."""
    refused = site.sign_up("bob@example.org", invited_by="nobody@example.org")

    assert refused.status_code in {400, 422}
    assert (site.people, site.mails) == ([], [])
    first = site.sign_up("ann@example.org")
    assert first.status_code == 201
    assert first.json()["task"] > 1  # for the one that was undone had an id already
    again = site.sign_up("ann@example.org")
    assert again.status_code == 500
    invited = site.sign_up("bob@example.org", invited_by="ann@example.org")
    assert invited.status_code == 201
    assert site.people == site.mails == ["ann@example.org", "bob@example.org"]
    assert site.rows("select email, guests from person order by email") == [
        ("ann@example.org", 1),
        ("bob@example.org", 0),
    ]


@pytest.mark.parametrize(
    ("lock", "words"), [(WELCOME, ENQUEUE), (THANKS, "person")], ids=["welcome", "thanks"]
)
@everywhere
def test_a_server_that_is_killed_leaves_nothing(site: Site, lock: str, words: str) -> None:
    """Nothing of a request can be seen before it has ended, nor if it never does."""
    site.sign_up("ann@example.org")
    with locked(site.dsn, lock), ThreadPoolExecutor() as pool:
        pool.submit(site.sign_up, "bob@example.org", invited_by="ann@example.org")
        until(lambda: site.waits(words), "a request that waits for the lock")
        seen = (site.people, site.mails)
        site.running.send(signal.SIGKILL)
        site.running.code()

    until(lambda: not site.waits(words), "the end of the request")
    assert seen == (site.people, site.mails) == (["ann@example.org"], ["ann@example.org"])


@everywhere
def test_a_client_that_hangs_up_leaves_all_or_nothing(site: Site) -> None:
    """A server that notices undoes the request at once; others do all of it for nobody."""
    site.sign_up("ann@example.org")
    with locked(site.dsn, THANKS):
        client = begin_sign_up(site, "bob@example.org", invited_by="ann@example.org")
        until(lambda: site.waits("person"), "a request that waits for the lock")
        client.close()
        if site.name == "starlette_signup":
            until(lambda: not site.waits("person"), "the end of the request")
        assert site.people == site.mails == ["ann@example.org"]

    if site.name != "starlette_signup":
        until(lambda: len(site.people) > 1, "the person")
        assert site.people == site.mails == ["ann@example.org", "bob@example.org"]
    assert site.sign_up("cas@example.org").status_code == 201
    assert site.people == site.mails


def begin_sign_up(site: Site, email: str, **more: str) -> http.client.HTTPConnection:
    """Send a request, and do not wait for the answer."""
    person = {"email": email, **more}
    form = site.body == "data"
    client = http.client.HTTPConnection("127.0.0.1", site.port)
    client.request(
        "POST",
        "/people",
        urlencode(person) if form else json.dumps(person),
        {"content-type": f"application/{'x-www-form-urlencoded' if form else 'json'}"},
    )
    return client


@pytest.mark.parametrize("site", ["fastapi_signup", "starlette_signup"], indirect=True)
def test_a_request_in_hand_is_answered_at_shutdown(site: Site) -> None:
    """SIGTERM lets a request end that has been begun, and after it the worker, if it is inside."""
    site.sign_up("ann@example.org")
    with ThreadPoolExecutor() as pool:
        with locked(site.dsn, THANKS):
            signed_up = pool.submit(site.sign_up, "bob@example.org", invited_by="ann@example.org")
            until(lambda: site.waits("person"), "a request that waits for the lock")
            site.running.send(signal.SIGTERM)
        answer = signed_up.result()

    assert answer.status_code == 201
    assert site.running.code() == END[site.name]
    assert site.people == site.mails == ["ann@example.org", "bob@example.org"]
    assert site.rows("select from nursery_queue.running") == []


@pytest.mark.parametrize("site", ["starlette_signup"], indirect=True)
def test_a_task_in_hand_is_settled_at_shutdown(site: Site) -> None:
    """After the server the worker ends, which stores that a task has succeeded, though late."""
    with locked(site.dsn, "lock table nursery_queue.finished in share mode"):
        task = site.sign_up("ann@example.org").json()["task"]
        site.running.line("Welcome, ann@example.org!", of="stdout")
        until(lambda: site.waits("settled"), "an outcome that waits for the lock")
        site.running.send(signal.SIGTERM)
        until(lambda: not site.is_listening, "the end of the server")

    assert site.running.code() == 0
    state = "select state, attempt from nursery_queue.task_status where id = %s"
    assert site.rows(state, [task]) == [("succeeded", 1)]
