"""What durability costs: `python -m tests.bench.bench_store` prints a table.

A fresh embedded PostgreSQL, organizations with a task each, then flushes of several shapes and
activations of many organizations at once. Medians; the first activation pays for connecting.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio

from meterd.adapters.asyncio_thread import open_asyncio_thread
from meterd.adapters.embedded_postgres import open_embedded_postgres
from meterd.adapters.postgres.migrate import Migrations
from meterd.adapters.postgres.pool import open_postgres_pools
from meterd.adapters.postgres.store import PostgresStore
from meterd.core.journal import OrganizationBatch
from meterd.core.units import MINUTE_MS
from tests.make import FixedClock, make_batch, make_new, make_period, make_row, make_task


ORGANIZATIONS = 10_000
ROUNDS = 40


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return the seconds that one call takes."""
    began_s = trio.current_time()
    await work()
    return trio.current_time() - began_s


def show(what: str, seconds: Sequence[float], items: int) -> None:
    """Print one line."""
    median_s = statistics.median(seconds)
    sys.stdout.write(f"{what:<44} {median_s * 1_000:8.2f} ms {items / median_s:10,.0f} a second\n")


def positions(names: Sequence[str], seq: int) -> list[OrganizationBatch]:
    """Return a heartbeat of one task in each organization."""
    return [
        make_batch(
            name,
            seq=seq,
            moved=(make_task(seq=seq, elapsed_ms=seq, metered_ms=seq),),
            periods=(make_period(used_ms=seq),),
        )
        for name in names
    ]


def rows(names: Sequence[str], seq: int) -> list[OrganizationBatch]:
    """Return ten ledger rows for each organization."""
    return [
        make_batch(
            name,
            seq=seq,
            rows=tuple(make_row(id=f"rec_{seq}_{name}_{n}", seq=seq) for n in range(10)),
            periods=(make_period(used_ms=seq * MINUTE_MS),),
        )
        for name in names
    ]


async def measure(store: PostgresStore) -> None:
    """Fill the database and print the table."""
    names = [f"org_{number:05}" for number in range(ORGANIZATIONS)]
    created = [await timed(lambda n=name: store.create_organization(make_new(n))) for name in names]  # type: ignore[misc]  # n is a str
    show("create an organization", created, 1)
    for at in range(0, ORGANIZATIONS, 250):
        started = [make_batch(name, started=(make_task(),)) for name in names[at : at + 250]]
        await store.flush(started)
    seq = 1
    for what, make, count, items in (
        ("flush 500 organizations x (task + period)", positions, 500, 500),
        ("flush 1 organization x (task + period)", positions, 1, 1),
        ("flush 50 organizations x 10 rows", rows, 50, 500),
    ):
        seconds = []
        for _ in range(ROUNDS):
            seq += 1
            batches = make(names[:count], seq)
            seconds.append(await timed(lambda b=batches: store.flush(b)))  # type: ignore[misc]  # b is a list
        show(what, seconds, items)
    for count in (1, 100, 1_000, 10_000):
        some = names[:count]
        seconds = [await timed(lambda ids=some: store.load(ids)) for _ in range(5)]  # type: ignore[misc]  # ids is a list
        show(f"load {count} organizations", seconds, count)


async def main() -> None:
    """Run everything on a server of its own, and throw it away."""
    directory = Path(tempfile.mkdtemp(prefix="meterd-bench-"))
    try:
        async with (
            open_asyncio_thread() as portal,
            open_embedded_postgres(portal, directory, on_progress=lambda _: None) as server,
        ):
            await Migrations(portal, server.dsn).upgrade()
            async with open_postgres_pools(portal, server.dsn) as pools:
                await measure(PostgresStore(pools, epoch=0, clock=FixedClock()))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    trio.run(main)
