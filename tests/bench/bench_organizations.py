"""What many organizations and a long ledger cost; prints one JSON object.

`python -m tests.bench.bench_organizations [ORGANIZATIONS] [LEDGER_ROWS]`. The real actors on a real
PostgreSQL in one process, without the web: organizations are copied in SQL, then activated cold;
memory is what the process grows by; a check and a frame are timed in processor time.
"""

from __future__ import annotations

import gc
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import psutil
import trio

from meterd.actors.cells import ActorPolicy
from meterd.actors.ledger import FlushPolicy, Ledger
from meterd.actors.organizations import Organizations
from meterd.adapters.asyncio_thread import open_asyncio_thread
from meterd.adapters.embedded_postgres import open_embedded_postgres
from meterd.adapters.ids import IdSource
from meterd.adapters.postgres.migrate import Migrations
from meterd.adapters.postgres.pool import Connection, PostgresPools, open_postgres_pools
from meterd.adapters.postgres.store import PostgresStore
from meterd.core.commands import Heartbeat, Recalled, StartTask
from meterd.core.decide import decide
from meterd.core.organization import Rules
from meterd.core.plan import Contract, Tier
from meterd.core.task import Plausibility, TaskInfo
from meterd.core.units import HOUR_MS
from tests.make import NOW_MS, make_new, make_terms
from tests.organizations import CATALOGUE


FIRST = "org_0000000"
FRAME = 100
FLUSHES = 20
CHECKS = 20_000
ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
FILL_AT_ONCE = 500_000
FILL_S = 300
"""A slow disk gets as many ledger rows as fit into this time."""

COPY_ORGANIZATIONS = """
WITH new AS (
    SELECT 'org_' || lpad(n::text, 7, '0') AS id FROM generate_series(1, $1::int) n
), a AS (
    INSERT INTO organizations (id, name, created_at, updated_at)
    SELECT new.id, o.name, o.created_at, o.updated_at FROM new, organizations o WHERE o.id = $2
), b AS (
    INSERT INTO organization_positions SELECT id, 0 FROM new
), c AS (
    INSERT INTO organization_terms
        (organization_id, terms_seq, effective_at, plan_tier, contract, trialing, limits, reason)
    SELECT new.id, t.terms_seq, t.effective_at, t.plan_tier, t.contract, t.trialing, t.limits,
        t.reason
    FROM new, organization_terms t WHERE t.organization_id = $2
)
INSERT INTO subscription_usage (
    id, organization_id, billing_period, period_start, period_end, plan_tier, terms_seq,
    agent_minutes_limit, last_updated
)
SELECT 'per_' || new.id, new.id, u.billing_period, u.period_start, u.period_end, u.plan_tier,
    u.terms_seq, u.agent_minutes_limit, u.last_updated
FROM new, subscription_usage u WHERE u.organization_id = $2
"""


@attrs.frozen
class MovingClock:
    """Wall time that begins when the test data do."""

    began: float = attrs.Factory(time.monotonic)

    def now_ms(self) -> int:
        """Return the milliseconds of the benchmark's own time."""
        return NOW_MS + int((time.monotonic() - self.began) * 1_000)


def rss() -> int:
    """Return this process's resident bytes, garbage aside."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def check_cpu_us(organizations: Organizations, names: Sequence[str]) -> float:
    """Return processor µs of one check in the actor, the organizations in turn."""
    began = time.process_time()
    for name in itertools.islice(itertools.cycle(names), CHECKS):
        assert organizations.view_nowait(name) is not None
    return (time.process_time() - began) * 1e6 / CHECKS


async def activate(organizations: Organizations, names: Sequence[str]) -> float:
    """Return the seconds until all of them have answered, 500 asking at a time."""
    began = trio.current_time()
    waiting = iter(names)

    async def ask() -> None:
        for name in waiting:
            await organizations.view(name)

    async with trio.open_nursery() as nursery:
        for _ in range(min(500, len(names))):
            nursery.start_soon(ask)
    return trio.current_time() - began


async def start_tasks(organizations: Organizations, name: str) -> list[str]:
    """Start a frame's worth of tasks; return their ids once they are durable."""
    ids = [f"{name}-{number}" for number in range(FRAME)]
    seq = 0
    for task_id in ids:
        info = TaskInfo(task_id=task_id, agent_id=task_id, started_at_ms=0)
        answer = await organizations.ask(name, StartTask(info=info, recalled=Recalled(None)))
        seq = answer.seq
    await organizations.durable(name, seq)
    return ids


async def flush_ms(
    organizations: Organizations, ids: Sequence[str], elapsed: Iterator[int]
) -> float:
    """Return the median ms from a frame's decision to its commit."""
    times = []
    first = next(elapsed)
    for task_id in ids:  # alone: after a long pause no report is plain
        await organizations.ask(FIRST, Heartbeat(task_id, first))
    for elapsed_ms in itertools.islice(elapsed, FLUSHES):
        await trio.sleep(0.03)  # after the flush interval: nothing to wait for but the commit
        began = trio.current_time()
        answer = organizations.beat_nowait(FIRST, [Heartbeat(one, elapsed_ms) for one in ids])
        assert answer is not None
        await organizations.durable(FIRST, answer.seq)
        times.append((trio.current_time() - began) * 1_000)
    return sorted(times)[len(times) // 2]


async def execute(pools: PostgresPools, text: str, *arguments: object) -> None:
    """Run one statement."""

    async def work(connection: Connection) -> None:
        await connection.execute(text, *arguments, timeout=600)

    await pools.write("fill", work)


async def fill_ledger(pools: PostgresPools, first: int, last: int) -> None:
    """Write ledger rows of the first organization in SQL, a minute each."""
    await execute(
        pools,
        """
        INSERT INTO usage_records (
            id, organization_id, resource_type, quantity, unit_cost, total_cost, metadata,
            "timestamp", billing_period, kind, source, quantity_ms, recorded_before_ms, terms_seq,
            seq
        )
        SELECT 'rec_fill_' || n, $2, 'agent_minute', 1, 0, 0, '{}', u.period_start,
            u.billing_period, 'included', 'task', 60000, 0, u.terms_seq, 0
        FROM generate_series($1::int, $3::int) n, subscription_usage u
        WHERE u.organization_id = $2
        """,
        first,
        FIRST,
        last,
    )


async def measure(store: PostgresStore, pools: PostgresPools, count: int, rows: int) -> object:
    """Return every figure."""
    clock, half, elapsed = MovingClock(), itertools.repeat(0.5), itertools.count(1)
    ids = IdSource(clock.now_ms, random.Random(1))
    ledger = Ledger(store, clock=clock, ids=ids, jitter=half, policy=FlushPolicy())
    organizations = Organizations(
        store,
        ledger,
        rules=Rules(
            catalogue=CATALOGUE,
            plausibility=Plausibility.OFF,
            task_timeout_ms=HOUR_MS,  # filling tables takes longer than agents may be silent
        ),
        clock=clock,
        ids=ids,
        jitter=half,
        policy=ActorPolicy(),
        decide=decide,
    )
    names = [f"org_{number:07}" for number in range(count)]
    found: dict[str, object] = {"organizations": count}
    async with trio.open_nursery() as nursery:
        for run in (ledger.run, organizations.cells.timers.run, organizations.cells.activation.run):
            nursery.start_soon(run)
        tasks = await start_tasks(organizations, FIRST)
        sizes = sorted({1, min(1_000, count), count})
        checks, flushes, live = [], [], 1
        for size in sizes:
            before = rss()
            seconds = await activate(organizations, names[live:size])
            if size > live:
                found["bytes_each"] = (rss() - before) / (size - live)
                found["activated_per_s"] = (size - live) / seconds
            live = size
            spread = names[:size][:: max(1, size // 1_000)]
            checks.append(check_cpu_us(organizations, spread))
            flushes.append(await flush_ms(organizations, tasks, elapsed))
        found |= {"sizes": sizes, "check_cpu_us": checks, "flush_ms": flushes}
        began = time.perf_counter()
        gc.collect()
        found["full_collection_ms"] = (time.perf_counter() - began) * 1_000
        by_rows: dict[int, float] = {}
        filled, until = 0, time.monotonic() + FILL_S
        for wanted in (size for size in ROWS if size <= rows):
            while filled < wanted and time.monotonic() < until:
                last = min(wanted, filled + FILL_AT_ONCE)
                await fill_ledger(pools, filled + 1, last)
                filled = last
            by_rows[filled] = await flush_ms(organizations, tasks, elapsed)
        found |= {"ledger_rows": list(by_rows), "flush_ms_by_rows": list(by_rows.values())}
        nursery.cancel_scope.cancel()
    return found


async def main() -> None:
    """Measure on a server of its own, and throw it away."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    directory = Path(tempfile.mkdtemp(prefix="meterd-bench-"))
    try:
        async with (
            open_asyncio_thread() as portal,
            open_embedded_postgres(portal, directory, on_progress=lambda _: None) as server,
        ):
            await Migrations(portal, server.dsn).upgrade()
            async with open_postgres_pools(portal, server.dsn) as pools:
                store = PostgresStore(pools, epoch=0, clock=MovingClock())
                await store.create_organization(
                    make_new(FIRST, terms=make_terms(Tier.PRO, Contract(agents=None)))
                )
                await execute(pools, COPY_ORGANIZATIONS, count - 1, FIRST)
                sys.stdout.write(json.dumps(await measure(store, pools, count, rows)) + "\n")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    trio.run(main)
