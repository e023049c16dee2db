"""The disk under PostgreSQL is full while agents report: tables cannot grow, then the log cannot.

Rule 1: the disk is a small tmpfs of the trial's own, which needs root.
Rule 2: when a table cannot grow, statements fail; when the write-ahead log cannot, PostgreSQL
ends (PANIC) and cannot start again before there is space. meterd lives through both.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import trio

from tests.crash.agents import Ledger, working_agents
from tests.crash.findings import Findings, NotHereError
from tests.crash.outages import (
    SETTINGS,
    Outage,
    embedded_url,
    outage_under_load,
    postmaster_of,
    settle,
)
from tests.integration.service.books import query_now
from tests.integration.service.harness import running_meterd


DISK_BYTES = 192 * 2**20
"""A new cluster with its log takes half of it."""

FILLER = "filler"


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Mount a small tmpfs on a directory for the length of the block.

    Errors: NotHereError.
    """
    if os.geteuid() != 0:
        raise NotHereError("only root can mount a small disk")
    size = f"size={DISK_BYTES},mode=0755"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotHereError(f"no mount: {error}") from error
    if done.returncode:
        raise NotHereError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(directory: Path) -> None:
    """Leave not a byte."""
    with (directory / FILLER).open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(2**16)):
            pass


def make_room(directory: Path) -> None:
    """Take the filler away."""
    (directory / FILLER).unlink(missing_ok=True)


def end_log_segment(url: str) -> None:
    """Have PostgreSQL need a new file for its log: without space it ends."""
    for _ in range(20):
        try:
            query_now(url, "SELECT pg_switch_wal(), pg_logical_emit_message(true, 'm', 'm')")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            return


async def full_disk(directory: Path, cycles: int, agents: int) -> Findings:
    """Fill the disk of an embedded PostgreSQL `cycles` times: for tables, then for the log."""
    found, ledger = Findings(), Ledger()
    data_dir = directory / "data"
    async with running_meterd("--data-dir", str(data_dir), settings=SETTINGS) as service:
        key = await service.organization("load", "enterprise")
        url = embedded_url(data_dir)

        def fill_and_end_log() -> None:
            fill(directory)
            end_log_segment(url)

        ways = (
            Outage("disk full", lambda: fill(directory), lambda: make_room(directory)),
            Outage("disk full for the log", fill_and_end_log, lambda: make_room(directory)),
        )
        async with working_agents(service.url, key, ledger, agents):
            for cycle in range(cycles):
                await ledger.recovery_s(trio.current_time())
                way = ways[cycle % len(ways)]
                before = postmaster_of(service.process.pid).pid
                await outage_under_load(service, key, ledger, found, way)
                is_other = postmaster_of(service.process.pid).pid != before
                found.expect(is_other == (way is ways[1]), f"{way.name}: PostgreSQL {before} ended")
        await settle(found, embedded_url(data_dir), ledger)
        found.expect(await service.stop() == 0, "SIGTERM did not end in exit 0")
    return found
