"""Sign-up with Django, all in one file: the person and the mail, or neither.

    python -m examples django_signup                  brings a database, the tables and a worker
    python -m examples.django_signup runserver        has those of DATABASE_URL (see tables.sql)
    nursery-queue worker examples.django_signup:tasks

Sign up, the second time in vain:

    curl localhost:8000/people -d email=ann@example.org
    curl localhost:8000/people -d email=bob@example.org -d invited_by=nobody
"""

from __future__ import annotations

import os
import sys

import django

from django.conf import settings
from django.core.exceptions import BadRequest
from django.core.management import execute_from_command_line
from django.db import connection, models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from psycopg.conninfo import conninfo_to_dict

import nursery_queue as nq


tasks = nq.App()
database = conninfo_to_dict(os.environ["DATABASE_URL"])
settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": database.pop("dbname"),
            "OPTIONS": database,
        }
    },
)
django.setup()


@tasks.task
def send_welcome(email: str) -> None:
    """Talk to your mail server here. A plain function runs in a thread of the worker."""
    print(f"Welcome, {email}!", flush=True)


class Person(models.Model):  # noqa: DJ008 - it is never printed
    """A person who has signed up."""

    email: models.TextField[str, str] = models.TextField(primary_key=True)
    guests: models.IntegerField[int, int] = models.IntegerField(default=0)

    class Meta:  # noqa: D106 - Django's way to say the rest
        app_label = "examples"
        db_table = "person"


def sign_up(request: HttpRequest) -> JsonResponse:
    """Store a person and the task to welcome them, both or neither."""
    email, invited_by = request.POST["email"], request.POST.get("invited_by")
    with transaction.atomic():  # commits, or rolls back if the block raises
        Person.objects.create(email=email)
        welcome = nq.producer(connection).enqueue(send_welcome, email)
        if invited_by is not None:
            host = Person.objects.filter(email=invited_by)
            if not host.update(guests=models.F("guests") + 1):
                raise BadRequest(f"{invited_by} is not here")
    return JsonResponse({"task": welcome.id}, status=201)


urlpatterns = [path("people", sign_up)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
