"""Tokens in a browser: counted once each, in order, whatever breaks off in between."""

from __future__ import annotations

import contextlib

from collections.abc import Generator

import httpx
import pytest

from examples.__main__ import commands
from examples.sse_tokens import model
from tests.examples.browser import CHROMIUM, Page, opened
from tests.examples.serving import Site, free_port, process
from tests.support.command_line import PATIENCE, until


QUESTION = " ".join(f"w{number}" for number in range(150))
TOKENS = model(QUESTION)
LISTENERS = """
    select pid from pg_stat_activity
     where datname = current_database() and application_name ~ '^nursery_queue'
       and (query ~* '^listen' or query = '')
"""
KILLED = f"select pid, pg_terminate_backend(pid) from ({LISTENERS}) listener"

browsing = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture
def page() -> Generator[Page]:
    """A page of a real browser, without a window."""
    with opened() as page:
        yield page


@contextlib.contextmanager
def served(dsn: str, port: int) -> Generator[Site]:
    """Run the server at that port while the block runs."""
    (command,) = commands("sse_tokens", port)
    with process(command, {"DATABASE_URL": dsn, "PORT": str(port)}) as running:
        site = Site("sse_tokens", port, dsn, running)
        site.wait_until_it_listens()
        yield site


@pytest.fixture
def tokens(tables: str) -> Generator[Site]:
    """The example, while it is being served."""
    with served(tables, free_port()) as site:
        yield site


def ask(page: Page, site: Site) -> None:
    page.goto(site.url)
    page.fill("input", QUESTION)
    page.click("button")


def count(page: Page) -> int:
    return int(page.text("#count"))


def wait_for(page: Page, tokens: int) -> int:
    """Return how many tokens have been counted, as soon as there are so many."""
    page.wait_for_function(f"document.getElementById('count').textContent >= {tokens}")
    return count(page)


def assert_each_once(page: Page, site: Site) -> None:
    """Wait for the end of the answer; every token has been shown and counted once, in order."""
    page.wait_for_function("document.getElementById('state').textContent != ''")
    assert page.text("#answer") == "".join(TOKENS)
    assert count(page) == len(TOKENS)
    written = site.rows("select length, restarts from nursery_queue.stream")
    assert written == [(len(TOKENS), 0)]


@browsing
def test_a_reload_and_a_killed_listener(tokens: Site, page: Page) -> None:
    """Neither a reload in mid-stream nor the end of what listens repeats or loses a token."""
    ask(page, tokens)
    wait_for(page, 10)

    killed = {pid for pid, _ in tokens.rows(KILLED)}
    assert len(killed) == 2  # the worker's and the client's
    seen = wait_for(page, count(page) + 10)
    page.reload()
    assert seen <= count(page) < len(TOKENS) - 30

    wait_for(page, count(page) + 10)
    again = {pid for (pid,) in tokens.rows(LISTENERS)}
    page.reload()
    assert count(page) < len(TOKENS)
    assert_each_once(page, tokens)
    assert len(again) == 2
    assert not killed & again


@browsing
def test_a_server_that_is_stopped_and_started_again(tables: str, page: Page) -> None:
    """The browser comes back by itself, and goes on where it was, as the task does."""
    port = free_port()
    with served(tables, port) as site:
        ask(page, site)
        wait_for(page, 20)
        assert site.stop() == 0
    assert 20 <= count(page) < len(TOKENS)

    with served(tables, port) as site:
        assert_each_once(page, site)
        outcomes = site.rows("select outcome from nursery_queue.attempt order by epoch")
        assert outcomes == [("interrupted",), ("succeeded",)]


def get(site: Site, task: int, after: str = "", **headers: str) -> list[str]:
    """Return the events that one request is told, without their names for ids and data."""
    answer = httpx.get(f"{site.url}/tokens/{task}?after={after}", headers=headers, timeout=PATIENCE)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, *events, last = answer.text.split("\n\n")
    assert (first, last) == ("retry: 200", "")
    return events


def test_from_where_it_sends(tokens: Site) -> None:
    """After the id in the header, else the one in the address, else from the beginning."""
    answer = httpx.post(f"{tokens.url}/ask", json={"question": "one two three"})
    assert answer.status_code == 202
    task = answer.json()["task"]
    everything = [
        'id: 0\ndata: "ONE "',
        'id: 1\ndata: "TWO "',
        'id: 2\ndata: "THREE "',
        "event: end\ndata:",
    ]

    live = get(tokens, task)

    assert live == everything
    assert get(tokens, task) == everything
    assert get(tokens, task, after="0") == everything[1:]
    assert get(tokens, task, after="0", **{"Last-Event-ID": "1"}) == everything[2:]
    assert get(tokens, task, **{"Last-Event-ID": "2"}) == everything[3:]
    assert get(tokens, task, after="garbage") == everything
    assert httpx.get(f"{tokens.url}/tokens/{task + 1}").status_code == 404


def test_a_browser_that_hangs_up(tokens: Site) -> None:
    """When nobody reads any more, nobody listens for tokens: the worker's connection is left."""
    asked = {"question": QUESTION}
    task = httpx.post(f"{tokens.url}/ask", json=asked).json()["task"]
    with httpx.stream("GET", f"{tokens.url}/tokens/{task}", timeout=PATIENCE) as answer:
        lines = answer.iter_lines()  # which ends the answer when it is forgotten
        assert next(lines) == "retry: 200"
        until(lambda: len(tokens.rows(LISTENERS)) == 2, "one who listens for tokens")

    until(lambda: len(tokens.rows(LISTENERS)) == 1, "the end of that")
