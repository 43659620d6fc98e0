"""One PostgreSQL data directory: make it, serve it, stop serving it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import time

from pathlib import Path
from typing import Final
from urllib.parse import quote

from attrs import define

from ._account import Account, admit
from ._programs import emptied, version_of, within_reach


_USUAL_PORT: Final = 5432
_LONGEST_SOCKET: Final = 103  # bytes in sun_path on the strictest platform, without the NUL
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0
_BUILTIN_LOCALES_SINCE: Final = 17
_ACCEPTS, _SILENT = 0, 2  # exit codes of pg_isready; between them: it is starting or stopping


@define(eq=False)
class Server:
    """One data directory and the programs that serve it; its methods need the turn."""

    data: Path
    programs: Path
    account: Account | None
    durable: bool
    tcp: bool

    def prepare(self) -> None:
        """See to it that the account can reach the directory and the programs."""
        admit(self.account, self.data.parent)
        if self.account is not None:
            self.programs = within_reach(self.programs, self.account, self.data.parent)

    def start(self) -> None:
        """Return once the server takes connections, started here or elsewhere."""
        if not self.data.exists():
            self._initialise()
        deadline = time.monotonic() + _START_SECONDS
        while (state := self._state()) != _ACCEPTS:
            if state == _SILENT and self._launch():
                return
            if time.monotonic() > deadline:
                raise self._failure("did not start")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server if it runs, gently for a while and then not so gently."""
        if not (self.data / "postmaster.pid").exists():
            return
        folder = self.socket_folder()
        for mode in ("fast", "immediate"):
            if self._run("pg_ctl", "status", "-D", ".").returncode != 0:
                break
            self._run("pg_ctl", "stop", "-D", ".", "-w", "-t", f"{_STOP_SECONDS:g}", "-m", mode)
        if folder != self.data:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def dsn(self) -> str:
        host = quote(str(self.socket_folder()), safe="")
        return f"postgresql://postgres@/postgres?host={host}&port={self._port()}"

    def _initialise(self) -> None:
        """Make the data directory, whole or not at all."""
        staging = emptied(self.data.with_name("data.new"))
        if self.account is not None:
            os.chown(staging, self.account.uid, self.account.gid)
        options = ["-U", "postgres", "--encoding=UTF8", "--no-locale"]
        options += ["--auth-local=trust", "--auth-host=scram-sha-256"]
        if int(version_of(self.programs).split(".")[0]) >= _BUILTIN_LOCALES_SINCE:
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if not self.durable:
            options.append("--no-sync")
        done = self._run("initdb", "-D", ".", *options, cwd=staging)
        if done.returncode != 0:
            msg = f"could not create a database cluster in {self.data}:\n{done.stderr}"
            raise RuntimeError(msg)
        staging.rename(self.data)

    def _launch(self) -> bool:
        """Start the server; False if that failed because it is about to stop or start."""
        folder = self.socket_folder()
        if folder != self.data:
            self._make_private(folder)
        # Relative names, and none of the user's: pg_ctl hands all of this to a shell.
        options = f"-k {'.' if folder == self.data else folder}"
        options += f" -h 127.0.0.1 -p {_free_port()}" if self.tcp else f" -h '' -p {_USUAL_PORT}"
        if not self.durable:
            options += " -F -c synchronous_commit=off -c full_page_writes=off"
        command = ("start", "-D", ".", "-w", "-t", f"{_START_SECONDS:g}", "-l", "server.log")
        if self._run("pg_ctl", *command, "-o", options).returncode == 0:
            return True
        if self._run("pg_ctl", "status", "-D", ".").returncode != 0:
            raise self._failure("did not start")
        return False

    def _state(self) -> int:
        if not (self.data / "postmaster.pid").exists():
            return _SILENT
        where = ("-h", str(self.socket_folder()), "-p", str(self._port()))
        return self._run("pg_isready", *where, "-t", "3").returncode

    def _port(self) -> int:
        """Return the port of the running server, as it wrote it down."""
        try:
            return int((self.data / "postmaster.pid").read_text().splitlines()[3])
        except (FileNotFoundError, IndexError, ValueError):
            return _USUAL_PORT

    def socket_folder(self) -> Path:
        """Return the data directory, or a short one if that is not fit for a socket.

        It follows from the path alone, so that all processes agree on it.
        """
        name = os.fsencode(self.data / ".s.PGSQL.65535")
        if len(name) <= _LONGEST_SOCKET and b"," not in name:  # to libpq a comma ends a host
            return self.data
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path("/tmp") / f"nursery-queue-{digest}"  # noqa: S108 - TMPDIR may be long, or differ between processes; the owner is checked

    def _make_private(self, folder: Path) -> None:
        owner = os.geteuid() if self.account is None else self.account.uid
        folder.mkdir(mode=0o700, exist_ok=True)
        if self.account is not None and folder.lstat().st_uid == 0:
            os.chown(folder, self.account.uid, self.account.gid, follow_symlinks=False)
        if folder.is_symlink() or folder.lstat().st_uid != owner:
            msg = f"{folder} is meant for the socket of {self.data}, but somebody else owns it"
            raise PermissionError(msg)

    def _run(
        self, program: str, *args: str, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        account = self.account
        return subprocess.run(
            [str(self.programs / program), *args],
            cwd=cwd or self.data,
            env={name: value for name, value in os.environ.items() if name[:2] != "PG"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
            umask=0o077,
            # Ctrl-C on a terminal goes to the whole foreground group; this is not part of it.
            start_new_session=True,
            check=False,
        )

    def _failure(self, what: str) -> RuntimeError:
        try:
            lines = (self.data / "server.log").read_text(errors="replace").splitlines()
        except OSError as exc:
            lines = [str(exc)]
        log = "\n".join(lines[-15:])
        return RuntimeError(f"the PostgreSQL server of {self.data} {what}; its log ends:\n{log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
