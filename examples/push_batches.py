"""Batches of mutations, as Zero's PushProcessor takes them, on trio.

Each mutation has its own transaction. When the last one has ended, and not before, the chat is
told of those that were committed. The answer does not wait for the chat; the end of the server
does.

    python -m examples push_batches               brings a database and the tables
    python -m examples.push_batches               has those of DATABASE_URL (see tables.sql)

    curl localhost:8000/push --json '{"mutations": [
        {"clientID": "c", "id": 1, "name": "create", "args": [{"id": 7, "title": "It rains"}]},
        {"clientID": "c", "id": 2, "name": "close", "args": [{"id": 8}]},
        {"clientID": "c", "id": 3, "name": "close", "args": [{"id": 7}]}]}'
"""

from __future__ import annotations

import functools
import os
import signal

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import hypercorn.trio
import trio

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import nursery_queue as nq


JSON = Mapping[str, Any]
Mutator = Callable[[nq.Transaction, JSON], Awaitable[None]]
ADVANCE = """
    insert into push_client (id, last_mutation) values (%(clientID)s, %(id)s)
    on conflict (id) do update set last_mutation = excluded.last_mutation
     where push_client.last_mutation < excluded.last_mutation
"""
GRACE = 20  # seconds for what has been begun when we are told to stop


class MutationError(Exception):
    """A mutation that cannot be: it is undone, and its client told why."""


async def tell_chat(text: str) -> None:
    """Talk to your chat here. This one takes its time."""
    print(f"telling: {text}", flush=True)
    await trio.sleep(3)
    print(f"told: {text}", flush=True)


async def create(tx: nq.Transaction, issue: JSON) -> None:
    """Open an issue."""
    tx.after(tell_chat, f"opened: {issue['title']}")
    await tx.execute("insert into issue (id, title) values (%(id)s, %(title)s)", issue)


async def close(tx: nq.Transaction, issue: JSON) -> None:
    """Close an issue, which must be open."""
    # As everything that a mutation does, it is dropped if what follows fails.
    tx.after(tell_chat, f"closed: {issue['id']}")
    closed = await tx.execute("update issue set open = false where id = %(id)s and open", issue)
    if not closed.rowcount:
        raise MutationError(f"there is no open issue {issue['id']}")


MUTATORS: Mapping[str, Mutator] = {"create": create, "close": close}


async def apply(mutation: JSON, client: nq.Client, batch: nq.AfterCommitBatch) -> JSON:
    """Apply a mutation, and return what became of it. It counts, whether it fails or not."""
    key = {"clientID": mutation["clientID"], "id": mutation["id"]}
    try:
        async with client.transaction(after=batch) as tx:
            advanced = await tx.execute(ADVANCE, key)
            if not advanced.rowcount:
                return {"id": key, "result": {"error": "alreadyProcessed"}}
            await MUTATORS[mutation["name"]](tx, *mutation["args"])
    except MutationError as exc:
        async with client.transaction() as tx:
            await tx.execute(ADVANCE, key)
        return {"id": key, "result": {"error": "app", "message": str(exc)}}
    return {"id": key, "result": {}}


async def push(request: Request) -> JSONResponse:
    """Apply a batch and report its results; then begins what its mutations have left to do."""
    state, body = request.app.state, await request.json()
    try:
        with state.after.batch() as batch:
            results = [await apply(each, state.client, batch) for each in body["mutations"]]
    except nq.Closed:  # told to stop between two mutations; the first ones are known by their ids
        return JSONResponse({"error": "stopping: push it again"}, status_code=503)
    return JSONResponse({"mutations": results})


web = Starlette(routes=[Route("/push", push, methods=["POST"])])


async def main() -> None:
    """Serve until told to stop; then end the requests and, beside them, what batches have left."""
    config = hypercorn.Config.from_mapping(
        bind=f"127.0.0.1:{os.environ.get('PORT', '8000')}", graceful_timeout=GRACE
    )
    stop = trio.Event()
    serve = functools.partial(hypercorn.trio.serve, web, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]  # narrower than ASGI
    async with nq.connect(os.environ["DATABASE_URL"]) as client, trio.open_nursery() as nursery:
        web.state.client, web.state.after = client, nq.AfterCommit(nursery)
        nursery.start_soon(serve)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await anext(signals)
        stop.set()
        await web.state.after.aclose(GRACE)


if __name__ == "__main__":
    trio.run(main)
