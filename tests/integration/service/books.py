"""The stored books, read with SQL of the tests' own, and `meterd audit` as an operator runs it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import asyncpg
import trio

from tests.integration.service.harness import environment


def query_now(url: str, sql: str, *arguments: Any) -> list[dict[str, Any]]:
    """Return rows of the database as dicts."""

    async def run() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            return [dict(row) for row in await connection.fetch(sql, *arguments)]
        finally:
            await connection.close(timeout=10)

    return asyncio.run(run())


async def query(url: str, sql: str, *arguments: Any) -> list[dict[str, Any]]:
    """Return rows of the database as dicts, from a Trio test."""
    return await trio.to_thread.run_sync(query_now, url, sql, *arguments)


async def audit(*options: str) -> tuple[int, dict[str, Any]]:
    """Return exit code and report of `meterd audit --json`."""
    done = await trio.run_process(
        [sys.executable, "-m", "meterd", "audit", "--json", *options],
        env=environment({}),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout, done.stderr.decode()
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


async def assert_books_are_right(*options: str) -> None:
    """Every invariant of the stored books holds."""
    code, report = await audit(*options)
    assert (code, report["differences"]) == (0, []), report
