"""Books on real PostgreSQL: a store, reports and upkeep, with a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg
import attrs
import pytest

from meterd.actors.reports import Reports
from meterd.adapters.postgres.books import PostgresBooks
from meterd.adapters.postgres.jobs import PostgresJobs
from meterd.adapters.postgres.metrics import PostgresMetrics
from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.store import PostgresStore
from meterd.adapters.postgres.upkeep import PostgresUpkeep
from tests.book_world import Company
from tests.make import FixedClock
from tests.organizations import CATALOGUE


@attrs.define(eq=False)
class Office:
    """Everything that keeps the books of one database."""

    pools: PostgresPools
    clock: FixedClock
    store: PostgresStore
    books: PostgresBooks
    metrics: PostgresMetrics
    upkeep: PostgresUpkeep
    jobs: PostgresJobs
    reports: Reports

    async def query(self, text: str, *arguments: Any) -> Sequence[asyncpg.Record]:
        """Return what a statement selects."""

        async def work(connection: Connection) -> list[asyncpg.Record]:
            return list(await connection.fetch(text, *arguments))

        return await self.pools.read("look", work)

    async def as_superuser(self, *statements: str) -> None:
        """Change what meterd itself never changes: triggers are off for these statements."""

        async def work(connection: Connection) -> None:
            async with connection.transaction():
                await connection.execute("SET LOCAL session_replication_role = replica")
                for statement in statements:
                    await connection.execute(statement)

        await self.pools.write("tamper", work)

    async def fill(self, companies: Iterable[Company]) -> None:
        """Store customers and what they ran."""
        for company in companies:
            assert await self.store.create_organization(company.new())
            for batch in company.batches():
                await self.store.flush([batch])
            await self.subscribe(company)

    async def subscribe(self, company: Company) -> None:
        """Mirror a customer's subscription as it is now."""
        text = company.subscription_json()
        await self.query("DELETE FROM stripe_subscriptions WHERE organization_id = $1", company.id)
        if text is not None:
            await self.query(
                "INSERT INTO stripe_subscriptions VALUES "
                "($1, $2, $3, $4, false, '1', $5::json, now())",
                f"sub_{company.id}",
                company.id,
                f"cus_{company.id}",
                company.status,
                text,
            )


@pytest.fixture
async def office(pools: PostgresPools) -> Office:
    """Give the books of an empty database of this test's own."""
    clock = FixedClock()
    books, metrics = PostgresBooks(pools), PostgresMetrics(pools)
    office = Office(
        pools=pools,
        clock=clock,
        store=PostgresStore(pools, epoch=0, clock=clock),
        books=books,
        metrics=metrics,
        upkeep=PostgresUpkeep(pools),
        jobs=PostgresJobs(pools),
        reports=Reports(books, metrics, CATALOGUE, clock),
    )
    [row] = await office.query("UPDATE meterd_owner SET epoch = epoch + 1 RETURNING epoch")
    office.store.epoch = office.jobs.epoch = row["epoch"]
    return office
