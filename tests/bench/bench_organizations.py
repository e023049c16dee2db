"""What many organizations cost; prints one JSON object.

`python -m tests.bench.bench_organizations [ORGANIZATIONS]`. The real actors on a real PostgreSQL in
one process, without the web: organizations are copied in SQL, then activated cold; memory is what
the process grows by; a check and a frame are timed in processor time.
"""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence

import psutil
import trio

from meterd.actors.organizations import Organizations
from meterd.adapters.asyncio_thread import open_asyncio_thread
from tests.bench.actors import FIRST, Actors, open_actors


FLUSHES = 20
CHECKS = 20_000

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


async def measure(actors: Actors, count: int) -> object:
    """Return every figure."""
    organizations, elapsed = actors.organizations, itertools.count(1)
    names = [f"org_{number:07}" for number in range(count)]
    found: dict[str, object] = {"organizations": count}
    tasks = await actors.start_tasks()
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
        await actors.resume(tasks, elapsed)
        times = [await actors.frame_ms(tasks, next(elapsed)) for _ in range(FLUSHES)]
        flushes.append(statistics.median(times))
    found |= {"sizes": sizes, "check_cpu_us": checks, "flush_ms": flushes}
    began = time.perf_counter()
    gc.collect()
    found["full_collection_ms"] = (time.perf_counter() - began) * 1_000
    return found


async def main() -> None:
    """Measure on a server of its own, and throw it away."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    async with open_asyncio_thread() as portal, open_actors(portal) as actors:
        await actors.execute(COPY_ORGANIZATIONS, count - 1, FIRST)
        sys.stdout.write(json.dumps(await measure(actors, count)) + "\n")


if __name__ == "__main__":
    trio.run(main)
