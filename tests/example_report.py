"""The example in reports/: `python -m tests.example_report` writes it anew.

Twenty-four made-up customers of February 2026 in a fresh embedded PostgreSQL, the snapshots of two
days, and the report of the second: everything by the code that a running meterd uses.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from pathlib import Path

import attrs
import trio

from meterd.actors.reports import Reports
from meterd.adapters.asyncio_thread import open_asyncio_thread
from meterd.adapters.embedded_postgres import open_embedded_postgres
from meterd.adapters.postgres.books import PostgresBooks
from meterd.adapters.postgres.jobs import PostgresJobs
from meterd.adapters.postgres.metrics import PostgresMetrics
from meterd.adapters.postgres.migrate import Migrations
from meterd.adapters.postgres.pool import Connection, PostgresPools, open_postgres_pools
from meterd.adapters.postgres.store import PostgresStore
from meterd.adapters.postgres.upkeep import PostgresUpkeep
from meterd.adapters.report_files import ReportFiles
from meterd.core.books import as_json
from meterd.core.schedule import JobRun, Occurrence, Outcome, Trigger
from meterd.core.units import DAY_MS, HOUR_MS
from meterd.reporting.figures import StoredReport
from tests.book_world import FEBRUARY_MS, Company, seeded_companies
from tests.make import FixedClock
from tests.organizations import CATALOGUE


SEED = 23
DAY = 19
"""The report is of 20 February."""

NAMES = (
    "Acme",
    "Globex",
    "Initech",
    "Umbrella",
    "Hooli",
    "Vandelay",
    "Wonka",
    "Stark",
    "Wayne",
    "Tyrell",
    "Cyberdyne",
    "Soylent",
    "Duff",
    "Oscorp",
    "Gekko",
    "Massive",
    "Aperture",
    "Monarch",
    "Zorg",
    "Virtucon",
    "Sirius",
    "Prestige",
    "Nakatomi",
    "Bluth",
)


async def make_example(pools: PostgresPools) -> StoredReport:
    """Fill a migrated, empty database and return its report of 20 February 2026."""
    clock = FixedClock()
    companies = seeded_companies(SEED, len(NAMES))
    for company, name in zip(companies, NAMES, strict=True):
        company.id, company.name = f"org_{name.lower()}", f"{name} Inc."
    epoch = await _fill(pools, clock, companies)
    reports = Reports(PostgresBooks(pools), PostgresMetrics(pools), CATALOGUE, clock)
    clock.at_ms = FEBRUARY_MS + 13 * DAY_MS + HOUR_MS // 2
    await reports.keep_revenue(FEBRUARY_MS + 12 * DAY_MS)
    chance = random.Random(SEED)
    for company in companies:
        if company.price_cents is None or chance.random() < 0.2:
            continue
        company.status = chance.choice(["active", "active", "canceled"])
        company.price_cents = chance.choice([4_900, 14_900])
        await _subscribe(pools, company)
    clock.at_ms = FEBRUARY_MS + (DAY + 1) * DAY_MS + 3 * HOUR_MS
    await _reconcile(pools, epoch, clock.at_ms)
    clock.at_ms += 3 * HOUR_MS
    report = await reports.get(FEBRUARY_MS + DAY * DAY_MS)
    assert report is not None
    return report


async def _fill(pools: PostgresPools, clock: FixedClock, companies: list[Company]) -> int:
    """Store customers and what they ran; return the epoch under which that was written."""

    async def own(connection: Connection) -> int:
        text = "UPDATE meterd_owner SET epoch = epoch + 1 RETURNING epoch"
        return int(await connection.fetchval(text))

    store = PostgresStore(pools, epoch=await pools.write("own", own), clock=clock)
    for company in companies:
        await store.create_organization(company.new())
        for batch in company.batches():
            await store.flush([batch])
        await _subscribe(pools, company)
    return store.epoch


async def _subscribe(pools: PostgresPools, company: Company) -> None:
    text = company.subscription_json()
    if text is None:
        return

    async def work(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO stripe_subscriptions VALUES ($1, $2, $3, $4, false, '1', $5::json, now()) "
            "ON CONFLICT (id) DO UPDATE SET status = excluded.status, object = excluded.object",
            f"sub_{company.id}",
            company.id,
            f"cus_{company.id}",
            company.status,
            text,
        )

    await pools.write("mirror", work)


async def _reconcile(pools: PostgresPools, epoch: int, now_ms: int) -> None:
    jobs = PostgresJobs(pools, epoch=epoch)
    name = "ledger_reconciliation"
    await jobs.register({name: Occurrence(at_ms=now_ms, subject="2026-02-21")})
    run = JobRun(
        id="run_example",
        job=name,
        subject="2026-02-21",
        trigger=Trigger.SCHEDULE,
        tries=1,
        started_at_ms=now_ms,
    )
    await jobs.begin(run)
    organizations, found = await PostgresUpkeep(pools).ledger_differences()
    detail = as_json({"organizations": organizations, "differences": len(found)})
    ended = attrs.evolve(
        run, finished_at_ms=now_ms + 840, outcome=Outcome.SUCCEEDED, detail_json=detail
    )
    await jobs.finish(ended, None)


async def main() -> None:
    """Write the example."""
    directory = Path(tempfile.mkdtemp(prefix="meterd-example-"))
    try:
        async with (
            open_asyncio_thread() as portal,
            open_embedded_postgres(portal, directory, on_progress=lambda _: None) as server,
        ):
            await Migrations(portal, server.dsn).upgrade()
            async with open_postgres_pools(portal, server.dsn) as pools:
                report = await make_example(pools)
        path = await ReportFiles(Path("reports")).write(report.day, report.markdown)
        sys.stdout.write(f"written to {path}\n")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    trio.run(main)
