"""What a year at 10,000 agents costs: `python -m tests.bench.bench_retention [DATABASE_URL]`.

Generates DAYS days of ledger rows, tasks and daily metrics of AGENTS agents in a database of its
own, measures rows and bytes with their indexes, and scales them to a year; then times the queries
of dashboards and of the nightly jobs on it. Without a URL the embedded PostgreSQL is used, in a
temporary directory. Each agent works WORK_HOURS a day in tasks of TASK_MINUTES: a row each ten
minutes of running.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from meterd.adapters.asyncio_thread import AsyncioThread, open_asyncio_thread
from meterd.adapters.embedded_postgres import open_embedded_postgres
from meterd.adapters.postgres import records
from meterd.adapters.postgres.metrics import PostgresMetrics
from meterd.adapters.postgres.migrate import Migrations
from meterd.adapters.postgres.pool import Connection, PostgresPools, open_postgres_pools
from meterd.core.plan import Tier
from meterd.core.units import DAY_MS
from tests.book_world import FEBRUARY_MS, Company


AGENTS = 10_000
ORGANIZATIONS = 500
DAYS = 3
WORK_HOURS = 8
TASK_MINUTES = 30
ROW_MINUTES = 10

TASKS_A_DAY = WORK_HOURS * 60 // TASK_MINUTES
ROWS_A_DAY = WORK_HOURS * 60 // ROW_MINUTES
YEAR = 365

GENERATE = f"""
INSERT INTO organizations (id, name, created_at, updated_at)
SELECT 'org_' || n, 'Customer ' || n, '2026-02-01', now()
FROM generate_series(1, {ORGANIZATIONS}) n;

INSERT INTO organization_positions (organization_id) SELECT id FROM organizations;

INSERT INTO organization_terms
SELECT id, 1, '2026-02-01', 'pro', '{{}}', false, '%LIMITS%'::jsonb, '' FROM organizations;

INSERT INTO subscription_usage (
    id, organization_id, billing_period, period_start, period_end, plan_tier, terms_seq,
    agent_minutes_limit, last_updated
)
SELECT 'per_' || id, id, '2026-02', '2026-02-01', '2026-03-01', 'pro', 1, 10000, now()
FROM organizations;

INSERT INTO tasks (
    organization_id, task_id, agent_id, state, outcome, started_at, last_heartbeat_at,
    metered_until, ended_at, elapsed_ms, metered_ms, recorded_ms, seq
)
SELECT
    'org_' || (a % {ORGANIZATIONS} + 1), 'task_' || md5(a || '/' || d || '/' || t), 'agent-' || a,
    'finished', 'succeeded', s, e, e, e, {TASK_MINUTES * 60_000}, {TASK_MINUTES * 60_000},
    {TASK_MINUTES * 60_000}, 1
FROM generate_series(0, {DAYS - 1}) d
CROSS JOIN generate_series(0, {TASKS_A_DAY - 1}) t
CROSS JOIN generate_series(1, {AGENTS}) a
CROSS JOIN LATERAL (
    SELECT '2026-02-01 08:00Z'::timestamptz + d * interval '1 day'
        + t * interval '{TASK_MINUTES} minutes' AS s
) s
CROSS JOIN LATERAL (SELECT s + interval '{TASK_MINUTES} minutes' AS e) e;

INSERT INTO usage_records (
    id, organization_id, resource_type, quantity, unit_cost, total_cost, "timestamp",
    billing_period, kind, source, quantity_ms, recorded_before_ms, task_id, agent_id, terms_seq,
    seq
)
SELECT
    'rec_' || lpad(to_hex(1769904000000 + row_number() OVER ()), 12, '0')
        || left(md5(a || '/' || d || '/' || r), 20),
    'org_' || (a % {ORGANIZATIONS} + 1), 'agent_minute', {ROW_MINUTES}, 0, 0,
    '2026-02-01 08:00Z'::timestamptz + d * interval '1 day'
        + (r + 1) * interval '{ROW_MINUTES} minutes' - interval '1 ms',
    '2026-02', 'included', 'task', {ROW_MINUTES * 60_000}, 0,
    'task_' || md5(a || '/' || d || '/' || (r * {ROW_MINUTES} / {TASK_MINUTES})), 'agent-' || a,
    1, 1
FROM generate_series(0, {DAYS - 1}) d
CROSS JOIN generate_series(0, {ROWS_A_DAY - 1}) r
CROSS JOIN generate_series(1, {AGENTS}) a;

ANALYZE
"""  # noqa: S608  # our own numbers

TABLES = {
    "usage_records": AGENTS * ROWS_A_DAY,
    "tasks": AGENTS * TASKS_A_DAY,
    "daily_metrics": ORGANIZATIONS,
}
"""Rows a day."""

QUERIES = {
    "daily series of an organization": """
        SELECT day, sum(quantity) FROM daily_metrics
        WHERE organization_id = 'org_7' AND day > '2026-01-05' GROUP BY day""",
    "100 newest ledger rows of a period": """
        SELECT * FROM usage_records WHERE organization_id = 'org_7' AND billing_period = '2026-02'
        ORDER BY "timestamp" DESC, id DESC LIMIT 100""",
    "a task's ledger rows": """
        SELECT * FROM usage_records
        WHERE organization_id = 'org_7' AND task_id = 'task_' || md5('6/1/2')""",
    "100 newest tasks": """
        SELECT * FROM tasks WHERE organization_id = 'org_7'
        ORDER BY started_at DESC, task_id LIMIT 100""",
}


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main(url: str | None) -> None:
    """Generate, measure and print a table."""
    async with open_asyncio_thread() as portal, _server(portal, url) as dsn:
        await Migrations(portal, dsn).upgrade()
        async with open_postgres_pools(portal, dsn) as pools:
            await _measure(pools)


@asynccontextmanager
async def _server(portal: AsyncioThread, url: str | None) -> AsyncIterator[str]:
    if url is not None:
        yield url
        return
    directory = Path(tempfile.mkdtemp(prefix="meterd-bench-"))
    try:
        async with open_embedded_postgres(portal, directory, on_progress=say) as server:
            yield server.dsn
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _measure(pools: PostgresPools) -> None:
    limits = records.limits_to_json(Company(id="x", name="x", tier=Tier.PRO).terms.limits)
    text = GENERATE.replace("%LIMITS%", limits)

    async def generate(connection: Connection) -> None:
        await connection.execute("SET statement_timeout = 0")
        await connection.execute(text)

    began_s = time.perf_counter()
    await pools.write("generate", generate, timeout_s=3_600)
    say(f"generated {DAYS} days in {time.perf_counter() - began_s:.0f} s")
    metrics = PostgresMetrics(pools)
    for day in range(DAYS):
        began_s = time.perf_counter()
        await metrics.aggregate_day(FEBRUARY_MS + day * DAY_MS)
        say(f"summed a day in {time.perf_counter() - began_s:.1f} s")
    say(f"\n{AGENTS:,} agents of {ORGANIZATIONS} organizations, {WORK_HOURS} h a day\n")
    say("| table | rows a year | bytes a row | of them indexes | GB a year |")
    say("| --- | --: | --: | --: | --: |")
    for table, rows_a_day in TABLES.items():
        size, indexes, rows = await _size(pools, table)
        year_gb = size / rows * rows_a_day * YEAR / 1e9
        say(
            f"| `{table}` | {rows_a_day * YEAR:,} | {size / rows:.0f} | {indexes / rows:.0f} "
            f"| {year_gb:.1f} |"
        )
    say("\n| query | median ms | worst ms |\n| --- | --: | --: |")
    for name, query in QUERIES.items():
        times = [await _query(pools, query) for _ in range(50)]
        say(f"| {name} | {statistics.median(times):.1f} | {max(times):.1f} |")


async def _size(pools: PostgresPools, table: str) -> tuple[int, int, int]:
    async def work(connection: Connection) -> tuple[int, int, int]:
        row = await connection.fetchrow(
            "SELECT pg_total_relation_size($1::regclass), pg_indexes_size($1::regclass)", table
        )
        rows = await connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608  # our names
        return row[0], row[1], rows

    return await pools.read("measure", work, timeout_s=600)


async def _query(pools: PostgresPools, query: str) -> float:
    async def work(connection: Connection) -> None:
        await connection.fetch(query)

    began = time.perf_counter()
    await pools.read("ask", work)
    return (time.perf_counter() - began) * 1_000


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
