"""Which system user runs the embedded server, and how that user gets to its files.

PostgreSQL refuses to run as root. Root therefore lends the work to an unprivileged user, who
must be able to pass every directory above the data. Where one is closed to that user and is
ours or a temporary one (pytest's are closed to all), it gets an access control entry: this user
may pass, and no more. Of any other directory only its owner changes the permissions.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import subprocess
import sys
import tempfile

from pathlib import Path

from attrs import frozen


if sys.platform != "win32":
    import pwd

_CANDIDATES = ("postgres", "nobody")

# linux/posix_acl_xattr.h: a version, then (tag, permissions, id) for each entry, sorted.
_ACL = "system.posix_acl_access"
_ACL_HEADER = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_VERSION = 2
_OWNER, _USER, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_SEARCH = 0x1


@frozen
class Account:
    """A system user to run programs as."""

    name: str
    uid: int
    gid: int


def account_for(data: Path) -> Account | None:
    """Return whom the server must run as; None: as the user of this process.

    Data that exists are served by their owner.
    """
    if os.geteuid() != 0:
        return None
    if data.exists() and (owner := data.stat().st_uid) != 0:
        return _account(pwd.getpwuid(owner))
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in _CANDIDATES:
        if name in known:
            return _account(known[name])
    raise RuntimeError(
        "PostgreSQL does not run as root, and there is no unprivileged user for it here "
        f"(looked for {' and '.join(_CANDIDATES)}): create one, or run as an ordinary user"
    )


def admit(account: Account | None, home: Path) -> None:
    """Make sure that *account* can enter *home*, or raise `PermissionError` and say how."""
    if account is None or can_enter(account, home):
        return
    temporary = Path(tempfile.gettempdir()).resolve()
    closed = [
        each
        for each in (home, *home.parents)
        if not each.stat().st_mode & stat.S_IXOTH and each.stat().st_uid != account.uid
    ]
    for each in closed:
        if each == home or temporary in each.parents:
            # A file system without such lists leaves the door closed, which is told below.
            with contextlib.suppress(OSError, AttributeError):
                _let_pass(account, each)
    if not can_enter(account, home):
        raise PermissionError(
            f"PostgreSQL does not run as root, and as user {account.name!r} it cannot enter "
            f"{home}: choose a path which that user can reach, or run chmod o+x on "
            f"{', '.join(str(each) for each in closed)}"
        )


def can_enter(account: Account, directory: Path) -> bool:
    """Whether *account* can make *directory* its working directory."""
    probe = subprocess.run(
        ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(directory)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        check=False,
    )
    return probe.returncode == 0


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def _let_pass(account: Account, directory: Path) -> None:
    entries = _acl(directory)
    group_class = entries.get((_MASK, _NO_ID))
    if group_class is None:
        group_class = entries[_GROUP, _NO_ID]
    entries[_MASK, _NO_ID] = group_class | _SEARCH
    entries[_USER, account.uid] = entries.get((_USER, account.uid), 0) | _SEARCH
    packed = b"".join(
        _ACL_ENTRY.pack(tag, permissions, who)
        for (tag, who), permissions in sorted(entries.items())
    )
    os.setxattr(directory, _ACL, _ACL_HEADER.pack(_ACL_VERSION) + packed)


def _acl(directory: Path) -> dict[tuple[int, int], int]:
    """Return the list as it stands, or the one that the mode amounts to."""
    if _ACL in os.listxattr(directory):
        packed = os.getxattr(directory, _ACL)[_ACL_HEADER.size :]
        return {(tag, who): allowed for tag, allowed, who in _ACL_ENTRY.iter_unpack(packed)}
    mode = directory.stat().st_mode
    return {
        (_OWNER, _NO_ID): mode >> 6 & 7,
        (_GROUP, _NO_ID): mode >> 3 & 7,
        (_OTHER, _NO_ID): mode & 7,
    }
