"""The real actors on a PostgreSQL of their own, in this process and without the web."""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from meterd.actors.cells import ActorPolicy, Cells
from meterd.actors.ledger import FlushPolicy, Ledger
from meterd.actors.organizations import Organizations
from meterd.adapters.asyncio_thread import AsyncioThread
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
FLUSHED_MS = 30
"""After so long there is nothing to wait for but the next commit."""


@attrs.frozen
class MovingClock:
    """Wall time that begins when the test data do."""

    began: float = attrs.Factory(time.monotonic)

    def now_ms(self) -> int:
        """Return the milliseconds of the benchmark's own time."""
        return NOW_MS + int((time.monotonic() - self.began) * 1_000)


@attrs.frozen
class Actors:
    """One organization, `FIRST`, that runs on a server of its own."""

    organizations: Organizations
    pools: PostgresPools
    dsn: str

    async def execute(self, text: str, *arguments: object) -> None:
        """Run one statement."""

        async def work(connection: Connection) -> None:
            await connection.execute(text, *arguments, timeout=600)

        await self.pools.write("fill", work)

    async def start_tasks(self) -> list[str]:
        """Start a frame's worth of tasks; return their ids once they are durable."""
        ids = [f"task-{number}" for number in range(FRAME)]
        seq = 0
        for task_id in ids:
            info = TaskInfo(task_id=task_id, agent_id=task_id, started_at_ms=0)
            command = StartTask(info=info, recalled=Recalled(None))
            seq = (await self.organizations.ask(FIRST, command)).seq
        await self.organizations.durable(FIRST, seq)
        return ids

    async def resume(self, ids: list[str], elapsed: Iterator[int]) -> None:
        """Report each task alone: after a long pause no report is plain."""
        first = next(elapsed)
        for task_id in ids:
            await self.organizations.ask(FIRST, Heartbeat(task_id, first))

    async def frame_ms(self, ids: list[str], elapsed_ms: int) -> float:
        """Return the ms from the decision of a frame of heartbeats to its commit."""
        await trio.sleep(FLUSHED_MS / 1_000)
        began = trio.current_time()
        reports = [Heartbeat(one, elapsed_ms) for one in ids]
        answer = self.organizations.beat_nowait(FIRST, reports)
        assert answer is not None
        await self.organizations.durable(FIRST, answer.seq)
        return (trio.current_time() - began) * 1_000


@asynccontextmanager
async def open_actors(portal: AsyncioThread) -> AsyncIterator[Actors]:
    """Give the actors of a new database; the server ends and is thrown away with the block."""
    directory = Path(tempfile.mkdtemp(prefix="meterd-bench-"))
    clock, half = MovingClock(), itertools.repeat(0.5)
    try:
        async with open_embedded_postgres(portal, directory, on_progress=lambda _: None) as server:
            await Migrations(portal, server.dsn).upgrade()
            async with open_postgres_pools(portal, server.dsn) as pools:
                store = PostgresStore(pools, epoch=0, clock=clock)
                terms = make_terms(Tier.PRO, Contract(agents=None, agent_minutes=100_000_000))
                await store.create_organization(make_new(FIRST, terms=terms))
                ids = IdSource(clock.now_ms, random.Random(1))
                ledger = Ledger(store, clock=clock, ids=ids, jitter=half, policy=FlushPolicy())
                cells = Cells(
                    store,
                    ledger,
                    rules=Rules(
                        catalogue=CATALOGUE,
                        plausibility=Plausibility.OFF,
                        task_timeout_ms=HOUR_MS,  # filling takes longer than agents may be silent
                    ),
                    clock=clock,
                    ids=ids,
                    jitter=half,
                    policy=ActorPolicy(),
                    decide=decide,
                )
                organizations = Organizations(cells)
                async with trio.open_nursery() as nursery:
                    for run in (ledger.run, cells.timers.run, cells.activation.run):
                        nursery.start_soon(run)
                    yield Actors(organizations, pools, server.dsn)
                    nursery.cancel_scope.cancel()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
