"""Sign-up with Flask and an SQLAlchemy Session: the person and the mail, or neither.

    python -m examples flask_signup               brings a database, the tables and a worker
    flask --app examples.flask_signup run         has those of DATABASE_URL (see tables.sql)
    nursery-queue worker examples.flask_signup:tasks

Sign up, the second time in vain:

    curl localhost:8000/people -d email=ann@example.org
    curl localhost:8000/people -d email=bob@example.org -d invited_by=nobody
"""

from __future__ import annotations

import os

from http import HTTPStatus

from flask import Flask, abort, request
from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column

import nursery_queue as nq


tasks = nq.App()
web = Flask(__name__)
engine = create_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))


@tasks.task
def send_welcome(email: str) -> None:
    """Talk to your mail server here. A plain function runs in a thread of the worker."""
    print(f"Welcome, {email}!", flush=True)


class Base(MappedAsDataclass, DeclarativeBase):
    """What all models have in common."""


class Person(Base):
    """A person who has signed up."""

    __tablename__ = "person"

    email: Mapped[str] = mapped_column(primary_key=True)
    guests: Mapped[int] = mapped_column(default=0)


@web.post("/people")
def sign_up() -> tuple[dict[str, int], HTTPStatus]:
    """Store a person and the task to welcome them, both or neither."""
    email, invited_by = request.form["email"], request.form.get("invited_by")
    with Session(engine) as session, session.begin():  # commits, or rolls back if it raises
        session.add(Person(email))
        welcome = nq.producer(session).enqueue(send_welcome, email)
        if invited_by is not None:
            host = session.get(Person, invited_by, with_for_update=True)
            if host is None:
                abort(HTTPStatus.UNPROCESSABLE_ENTITY, f"{invited_by} is not here")
            host.guests += 1
    return {"task": welcome.id}, HTTPStatus.CREATED
