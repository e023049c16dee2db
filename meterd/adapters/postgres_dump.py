"""Backups of a database: PostgreSQL's own pg_dump and pg_restore, from the wheel we ship.

A dump is one consistent snapshot, whatever is written meanwhile, in the custom format: it can be
restored into this or a later version of PostgreSQL, embedded or not.
Rule 1: passwords travel in the environment of the child, never in its arguments.
Rule 2: a backup has its name only when it is whole, and only its owner may read it: it holds
everything, the pepper of the keys included.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

import trio

from meterd.adapters.postgres_cluster import PROGRAMS
from meterd.errors import StoreRejectedError


ERROR_CHARACTERS: Final = 600
"""Of what the program said last, so much is quoted."""


async def dump(dsn: str, target: Path) -> int:
    """Write a backup of the database to a new file and return its size in bytes.

    Errors: StoreRejectedError with pg_dump's words; FileExistsError when the file is there.
    """
    part = target.with_name(target.name + ".part")
    # Created by us, so that it is private before the first byte of it is written.
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        await _run(
            "back the database up",
            [
                *("pg_dump", "--format=custom", "--no-owner", "--no-privileges"),
                "--enable-row-security",  # else it refuses every role but a superuser
                f"--file={part}",
            ],
            dsn,
        )
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.link(part, target)  # unlike a rename it never replaces an earlier backup
    finally:
        part.unlink()
    return os.stat(target).st_size  # noqa: PTH116  # a local file's size waits for nothing


async def restore(dsn: str, source: Path) -> None:
    """Read a backup into an empty database, all of it or nothing.

    Errors: StoreRejectedError with pg_restore's words.
    """
    await _run(
        "restore the database",
        [
            *("pg_restore", "--exit-on-error", "--single-transaction", "--no-owner"),
            *("--no-privileges", "--dbname=", str(source)),
        ],
        dsn,
    )


async def _run(action: str, command: list[str], dsn: str) -> None:
    parts = urlsplit(dsn)
    password = unquote(parts.password) if parts.password is not None else None
    host = parts.netloc.rpartition("@")[2]
    user = (parts.netloc.rpartition("@")[0]).partition(":")[0]
    bare = urlunsplit(parts._replace(netloc=f"{user}@{host}" if user else host))
    named = [f"--dbname={bare}" if each == "--dbname=" else each for each in command]
    if named == command:
        named.append(f"--dbname={bare}")
    environment = {**os.environ, **({} if password is None else {"PGPASSWORD": password})}
    done = await trio.run_process(
        [str(PROGRAMS / named[0]), "--no-password", *named[1:]],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-ERROR_CHARACTERS:]
        raise StoreRejectedError(action, said)
