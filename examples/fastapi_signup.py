"""Sign-up with FastAPI and psycopg on asyncio: the person and the mail, or neither.

    python -m examples fastapi_signup             brings a database, the tables and a worker
    uvicorn examples.fastapi_signup:web           has those of DATABASE_URL (see tables.sql)
    nursery-queue worker examples.fastapi_signup:tasks

Sign up, the second time in vain:

    curl localhost:8000/people --json '{"email": "ann@example.org"}'
    curl localhost:8000/people --json '{"email": "bob@example.org", "invited_by": "nobody"}'
"""

from __future__ import annotations

import contextlib
import os

from collections.abc import AsyncGenerator

from fastapi import FastAPI, HTTPException
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

import nursery_queue as nq


tasks = nq.App()
pool = AsyncConnectionPool(os.environ["DATABASE_URL"], open=False)


@tasks.task
async def send_welcome(email: str) -> None:
    """Talk to your mail server here."""
    print(f"Welcome, {email}!", flush=True)


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    """Keep the connections for as long as the server runs."""
    async with pool:
        yield


web = FastAPI(lifespan=lifespan)


class SignUp(BaseModel):
    """What the body of the request says."""

    email: str
    invited_by: str | None = None


@web.post("/people", status_code=201)
async def sign_up(person: SignUp) -> dict[str, int]:
    """Store a person and the task to welcome them, both or neither."""
    # Not in a dependency with `yield`: that would commit after the answer has been sent.
    async with pool.connection() as connection:  # commits, or rolls back if the block raises
        await connection.execute("insert into person (email) values (%s)", [person.email])
        welcome = await nq.producer(connection).enqueue(send_welcome, person.email)
        if person.invited_by is not None:
            thanks = "update person set guests = guests + 1 where email = %s"
            thanked = await connection.execute(thanks, [person.invited_by])
            if not thanked.rowcount:
                raise HTTPException(422, f"{person.invited_by} is not here")
    return {"task": welcome.id}
