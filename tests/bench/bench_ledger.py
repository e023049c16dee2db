"""What a durable frame costs beside ledgers of several lengths; prints one JSON object.

`python -m tests.bench.bench_ledger [ROWS]`. A server for each length, with the same organization
and the real actors; each round takes one frame of each server in turn. A frame of heartbeats moves
positions and counters; a request of events looks their ids up and adds a row for each.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import attrs
import trio

from meterd.adapters.asyncio_thread import open_asyncio_thread
from meterd.core.commands import RecordEvents
from meterd.core.event import UsageEvent
from meterd.core.plan import Resource
from meterd.core.units import to_datetime
from tests.bench.actors import FIRST, FLUSHED_MS, FRAME, Actors, open_actors
from tests.bench.ledgers import fill
from tests.make import NOW_MS


ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
ROUNDS = 60
WARM_UP = 5


@attrs.define
class Measured:
    """One server: its organization's running tasks, and what each round took."""

    actors: Actors
    rows: int
    tasks: list[str]
    heartbeats_ms: list[float] = attrs.Factory(list)
    events_ms: list[float] = attrs.Factory(list)

    async def take_round(self, number: int) -> None:
        """Take a frame of heartbeats and a request of events."""
        self.heartbeats_ms.append(await self.actors.frame_ms(self.tasks, number))
        self.events_ms.append(await self.record_ms(number))

    async def record_ms(self, number: int) -> float:
        """Return the ms from asking for a hundred new events to their commit."""
        organizations = self.actors.organizations
        events = [
            UsageEvent(source="bench", id=f"{number}-{n}", resource=Resource.API_CALL, amount=1)
            for n in range(FRAME)
        ]
        await trio.sleep(FLUSHED_MS / 1_000)
        began = trio.current_time()
        answer = await organizations.ask(FIRST, RecordEvents(events=events))
        await organizations.durable(FIRST, answer.seq)
        return (trio.current_time() - began) * 1_000


def median_ms(times: Sequence[float]) -> float:
    """Return the median of the rounds that count."""
    return statistics.median(times[WARM_UP:])


async def measure(lengths: Sequence[int]) -> object:
    """Return the lengths and both medians of each."""
    async with AsyncExitStack() as stack:
        portal = await stack.enter_async_context(open_asyncio_thread())
        servers = []
        for rows in lengths:
            actors = await stack.enter_async_context(open_actors(portal))
            until = partial(fill, now=to_datetime(NOW_MS))
            await trio.to_thread.run_sync(until, actors.dsn, FIRST, rows)
            servers.append(Measured(actors, rows, await actors.start_tasks()))
        elapsed = itertools.count(1)
        for server in servers:
            await server.actors.resume(server.tasks, elapsed)
        for number in itertools.islice(elapsed, ROUNDS + WARM_UP):
            for server in servers:
                await server.take_round(number)
        return {
            "rows": [server.rows for server in servers],
            "heartbeats_ms": [median_ms(server.heartbeats_ms) for server in servers],
            "events_ms": [median_ms(server.events_ms) for server in servers],
        }


async def main() -> None:
    """Measure every length up to the one given."""
    longest = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    lengths = [rows for rows in ROWS if rows <= longest] or [longest]
    sys.stdout.write(json.dumps(await measure(lengths)) + "\n")


if __name__ == "__main__":
    trio.run(main)
