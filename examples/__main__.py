"""Run an application with nothing to set up: `python -m examples NAME [PORT]`.

It brings the database, its tables and, for a server that is not on trio, a worker. The database
is the one that NURSERY_QUEUE_DSN or DATABASE_URL names, otherwise one on a server that is gone
in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile

from collections.abc import Generator, Sequence
from pathlib import Path

import psycopg
import trio

import nursery_queue as nq


TABLES = Path(__file__).with_name("tables.sql")
GRACE = 40  # seconds, more than any of them takes to end well
WORKER = "nursery_queue worker examples.{name}:tasks"
COMMANDS = {
    "fastapi_signup": ["uvicorn examples.fastapi_signup:web --port {port}", WORKER],
    "flask_signup": ["flask --app examples.flask_signup run --port {port}", WORKER],
    "django_signup": ["examples.django_signup runserver --noreload {port}", WORKER],
    "starlette_signup": ["examples.starlette_signup"],
    "push_batches": ["examples.push_batches"],
    "sse_tokens": ["examples.sse_tokens"],
}


def main() -> int:
    """Return 0 when told to stop, otherwise the exit code of what ended by itself."""
    parser = argparse.ArgumentParser(
        prog="python -m examples", description="Run an application with nothing to set up."
    )
    parser.add_argument("name", choices=COMMANDS)
    parser.add_argument("port", nargs="?", type=int, default=8000)
    arguments = parser.parse_args()
    # SIGTERM as Ctrl-C: what we have started must not outlive us.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with database() as dsn:
            prepare(dsn)
            return trio.run(run, commands(arguments.name, arguments.port), dsn, arguments.port)
    except KeyboardInterrupt:
        return 0


def commands(name: str, port: int) -> list[list[str]]:
    """Return how the application *name* is run: the server first."""
    return [
        [sys.executable, "-m", *command.format(name=name, port=port).split()]
        for command in COMMANDS[name]
    ]


@contextlib.contextmanager
def database() -> Generator[str]:
    """Use the database that the environment names, or one that is gone when the block ends."""
    if dsn := os.environ.get("NURSERY_QUEUE_DSN") or os.environ.get("DATABASE_URL"):
        yield dsn
        return
    with tempfile.TemporaryDirectory() as path, nq.embedded(path) as server:
        yield server.dsn


def prepare(dsn: str) -> None:
    """Make the tables of the queue, and our own, unless they are there."""
    trio.run(nq.migrate, dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute(TABLES.read_bytes())


async def run(commands: Sequence[Sequence[str]], dsn: str, port: int) -> int:
    """Run *commands* until one ends or we are told to stop, which ends them all."""
    environment = {**os.environ, "DATABASE_URL": dsn, "PORT": str(port)}
    codes: list[int] = []
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def run_one(command: Sequence[str]) -> None:
                done = await trio.run_process(
                    command,
                    env=environment,
                    check=False,
                    start_new_session=True,  # Ctrl-C is for us alone: we tell the others
                    deliver_cancel=end,
                )
                codes.append(done.returncode)
                nursery.cancel_scope.cancel(f"{command[2]} has ended")

            for command in commands:
                nursery.start_soon(run_one, command)
            await anext(signals)
            nursery.cancel_scope.cancel("told to stop")
    return codes[0] if codes else 0


async def end(process: trio.Process) -> None:
    """Let it finish what it has begun, but not for ever."""
    process.terminate()
    await trio.sleep(GRACE)
    process.kill()


if __name__ == "__main__":
    sys.exit(main())
