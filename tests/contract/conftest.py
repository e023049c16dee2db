"""One store for every contract test: the twin in memory, and real PostgreSQL as two roles.

One owns everything; the other has what `meterd migrate --grant-service` gives, and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import attrs
import pytest

from meterd.adapters.asyncio_thread import open_asyncio_thread
from meterd.adapters.memory.store import Database, MemoryStore
from meterd.adapters.postgres.pool import Connection, open_postgres_pools
from meterd.adapters.postgres.store import PostgresStore
from tests.make import FixedClock


Store = MemoryStore | PostgresStore


async def query(store: PostgresStore, text: str, *arguments: Any) -> Sequence[asyncpg.Record]:
    """Return what a statement selects, on a connection of the store."""

    async def work(connection: Connection) -> list[asyncpg.Record]:
        return list(await connection.fetch(text, *arguments))

    return await store.pools.read("look", work)


async def take_ownership(store: Store) -> int:
    """Let somebody become the owner, and return the new epoch."""
    if isinstance(store, MemoryStore):
        return store.database.take()
    found = await query(store, "UPDATE meterd_owner SET epoch = epoch + 1 RETURNING epoch")
    return int(found[0]["epoch"])


async def written(store: Store, table: str) -> int:
    """Return how many rows a table has, over all organizations."""
    if isinstance(store, MemoryStore):
        organizations = store.database.organizations.values()
        counts = {
            "usage_records": sum(len(record.rows) for record in organizations),
            "tasks": sum(len(record.tasks) for record in organizations),
            "organization_terms": sum(len(record.terms) for record in organizations),
            "subscription_usage": sum(len(record.periods) for record in organizations),
            "audit_log": len(store.database.audits),
            "findings": len(store.database.findings),
            "dead_letters": len(store.database.letters),
        }
        return counts[table]
    found = await query(store, f"SELECT count(*) AS n FROM {table}")  # noqa: S608  # our names
    return int(found[0]["n"])


@attrs.define
class Owned:
    """A store whose epoch owns the database, and the clock it reads."""

    store: Store
    clock: FixedClock


@pytest.fixture(params=[None, "database_url", "service_database_url"])
def url(request: pytest.FixtureRequest) -> str | None:
    """Give the URL of a database, or None for memory. Not async: a server is started outside."""
    return None if request.param is None else str(request.getfixturevalue(request.param))


@pytest.fixture
async def owned(url: str | None) -> AsyncIterator[Owned]:
    """Give a store with its clock."""
    clock = FixedClock()
    if url is None:
        database = Database()
        yield Owned(MemoryStore(database, epoch=database.take(), clock=clock), clock)
        return
    async with open_asyncio_thread() as portal, open_postgres_pools(portal, url) as pools:
        store = PostgresStore(pools, epoch=0, clock=clock)
        store.epoch = await take_ownership(store)
        yield Owned(store, clock)


@pytest.fixture
def store(owned: Owned) -> Store:
    """Give a store that owns its database."""
    return owned.store


@pytest.fixture
def clock(owned: Owned) -> FixedClock:
    """Give the clock the store reads."""
    return owned.clock
