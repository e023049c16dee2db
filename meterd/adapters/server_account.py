"""Under which account the embedded PostgreSQL runs: it refuses root, so root needs another one.

Rule 1: an ordinary user runs the server as itself; nothing here applies.
Rule 2: under root the owner of an existing cluster stays its owner. A new cluster belongs to the
account `meterd`, created if need be; where accounts cannot be created, to `postgres` or `nobody`.
Rule 3: no directory that meterd did not make is opened to others. Only the data directory itself
lets the account's group pass through; a parent that does not is named in an error.
An arbitrary unused number is no account: initdb refuses one that has no entry in /etc/passwd.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from meterd.errors import EmbeddedPostgresError


ACCOUNT_NAME = "meterd"
"""The dedicated system account that is used, or created, when meterd runs as root."""

FALLBACK_NAMES = ("postgres", "nobody")
"""Accounts that nearly every system has; shared with others, so only when creating fails."""

CREATE_TIMEOUT_S = 30.0
"""Seconds `useradd` may take; it waits for a lock on /etc/passwd."""

CREATE_COMMANDS = (
    ("useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent", ACCOUNT_NAME),
    ("adduser", "-S", "-D", "-H", "-h", "/nonexistent", ACCOUNT_NAME),  # BusyBox
)


@attrs.frozen(kw_only=True)
class ServerAccount:
    """The account the server's processes run as."""

    name: str
    uid: int
    gid: int

    def popen_options(self) -> dict[str, Any]:
        """Return what makes `subprocess` run a program as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def choose_account(cluster: Path, say: Callable[[str], None]) -> ServerAccount | None:
    """Return the account to run the server as, or None to run it as ourselves.

    `cluster` need not exist. Errors: EmbeddedPostgresError when root finds no account at all.
    """
    if os.geteuid() != 0:
        return None
    if (owner := _owner(cluster)) is not None:
        return owner
    account = _named(ACCOUNT_NAME)
    if account is None and _create(ACCOUNT_NAME):
        account = _named(ACCOUNT_NAME)
        say(f"created the system account {ACCOUNT_NAME}, because PostgreSQL refuses root")
    if account is None:
        account = next(filter(None, map(_named, FALLBACK_NAMES)), None)
    if account is None:
        raise EmbeddedPostgresError(
            "PostgreSQL refuses to run as root, and there is no other account to run it as: "
            f"create one named {ACCOUNT_NAME}, or run meterd as an ordinary user"
        )
    say(f"PostgreSQL will run as the account {account.name} (uid {account.uid})")
    return account


def let_pass(directory: Path, account: ServerAccount | None) -> None:
    """Let the account pass through our own data directory, through its group and no further."""
    if account is None or _may_pass(directory, account):
        return
    os.chown(directory, -1, account.gid)
    directory.chmod(stat.S_IMODE(directory.stat().st_mode) | stat.S_IXGRP)


def require_reachable(path: Path, account: ServerAccount | None, *, what: str) -> None:
    """Raise EmbeddedPostgresError, naming the directory in the way, unless the account can pass.

    `what` is the subject of the sentence, such as "the data directory".
    """
    if account is None:
        return
    for directory in reversed((path, *path.parents)):
        if directory.is_dir() and not _may_pass(directory, account):
            raise EmbeddedPostgresError(
                f"{what} {path} cannot be reached by the account {account.name} "
                f"(uid {account.uid}) that PostgreSQL runs as, because {directory} lets no other "
                "account through: use a directory outside of it, such as /var/lib/meterd, "
                "or run meterd as an ordinary user"
            )


def _may_pass(directory: Path, account: ServerAccount) -> bool:
    status = directory.stat()
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _owner(cluster: Path) -> ServerAccount | None:
    try:
        status = cluster.stat()
    except FileNotFoundError:
        return None
    if status.st_uid == 0:
        return None
    try:
        name = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:  # a new container with an old volume; only initdb needs the entry
        name = f"#{status.st_uid}"
    return ServerAccount(name=name, uid=status.st_uid, gid=status.st_gid)


def _named(name: str) -> ServerAccount | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return ServerAccount(name=name, uid=entry.pw_uid, gid=entry.pw_gid)


def _create(name: str) -> bool:
    """Tell whether the account exists after trying to create it; another process may win."""
    for command in CREATE_COMMANDS:
        program = shutil.which(command[0])
        if program is None:
            continue
        # A fixed command line without a shell; what it prints is no news when it fails.
        subprocess.run(  # noqa: S603
            [program, *command[1:]], check=False, capture_output=True, timeout=CREATE_TIMEOUT_S
        )
        if _named(name) is not None:
            return True
    return False
