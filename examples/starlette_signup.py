"""Sign-up with Starlette on trio: server and worker in one nursery, with one shutdown.

    python -m examples starlette_signup           brings a database and the tables
    python -m examples.starlette_signup           has those of DATABASE_URL (see tables.sql)

Sign up, the second time in vain:

    curl localhost:8000/people --json '{"email": "ann@example.org"}'
    curl localhost:8000/people --json '{"email": "bob@example.org", "invited_by": "nobody"}'
"""

from __future__ import annotations

import os
import signal

import attrs
import hypercorn.trio
import trio

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import nursery_queue as nq


tasks = nq.App()


@tasks.task
async def send_welcome(email: str) -> None:
    """Talk to your mail server here."""
    print(f"Welcome, {email}!", flush=True)


async def sign_up(request: Request) -> JSONResponse:
    """Store a person and the task to welcome them, both or neither."""
    client: nq.Client = request.app.state.client
    person = await request.json()
    async with client.transaction() as tx:  # rolls back if it raises or is cancelled
        await tx.execute("insert into person (email) values (%s)", [person["email"]])
        welcome = await tx.enqueue(send_welcome, person["email"])
        if invited_by := person.get("invited_by"):
            thanks = "update person set guests = guests + 1 where email = %s"
            thanked = await tx.execute(thanks, [invited_by])
            if not thanked.rowcount:
                raise HTTPException(422, f"{invited_by} is not here")
    return JSONResponse({"task": welcome.id}, status_code=201)


@attrs.frozen
class CancelWhenHungUp:
    """Cancels a request when its client is gone, which rolls back what it has begun."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the messages on, and look for the one that says so."""
        passing, passed = trio.open_memory_channel[Message](0)

        async def listen() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                await passing.send(message)
            nursery.cancel_scope.cancel("the client has hung up")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await self.app(scope, passed.receive, send)
            nursery.cancel_scope.cancel("the request has been answered")


web = Starlette(
    routes=[Route("/people", sign_up, methods=["POST"])],
    middleware=[Middleware(CancelWhenHungUp)],
)


async def told_to_stop() -> None:
    """Wait for SIGTERM or Ctrl-C."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        await anext(signals)


async def main() -> None:
    """Serve and work until told to stop; then end the requests, and then the tasks."""
    config = hypercorn.Config.from_mapping(bind=f"127.0.0.1:{os.environ.get('PORT', '8000')}")
    async with nq.connect(os.environ["DATABASE_URL"]) as client, trio.open_nursery() as nursery:
        web.state.client = client
        worker = nq.Worker(tasks, client)
        await nursery.start(worker.run)
        await hypercorn.trio.serve(web, config, shutdown_trigger=told_to_stop)  # type: ignore[arg-type]  # narrower than ASGI
        worker.stop()


if __name__ == "__main__":
    trio.run(main)
