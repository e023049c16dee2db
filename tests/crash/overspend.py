"""Many agents race for the last minute of a hard limit, through raw frames.

The budget runs out at an instant that the stored start times decide; from then on everybody
should be stopped. The time to stop counts from there until the frame was read, on one machine's
clock. What ran past it is the price of delivery; none of it may be billed.
"""

from __future__ import annotations

import contextlib
import time

import attrs
import trio

from tests.crash.findings import Findings, exhausted_at_s
from tests.crash.outages import LIMIT_MS, SETTINGS, compare_limits, tight_organization
from tests.integration.service.books import query
from tests.integration.service.harness import Service, running_meterd
from tests.integration.service.stream import Message, Stream, open_stream


LAST_MS = 60_000
STREAMS = 5
TIDY_UP_S = 0.5
"""What an agent runs on after it has read `stop`: so all of them together pass the limit."""

STOPPED_WITHIN_S = 2.0
"""Seconds after the budget has run out; a busy machine of two cores stays far below."""

REFUSALS = {"agent_limit_reached", "plan_limit_reached"}


@attrs.define(eq=False)
class Race:
    """One organization and everybody who wants its last minute."""

    name: str
    slots: int
    ran_ms: list[int] = attrs.Factory(list)
    stopped_at_s: list[float] = attrs.Factory(list)
    """When each `stop` was read, in seconds since 1970."""
    refused: list[str] = attrs.Factory(list)

    async def run(self, service: Service, key: str) -> None:
        """Let a fifth more agents race than there are slots; return when all have ended."""
        async with contextlib.AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(open_stream(service.stream_url, key))
                for _ in range(STREAMS)
            ]
            async with trio.open_nursery() as nursery:
                for number in range(self.slots + self.slots // 5):
                    nursery.start_soon(self._agent, streams[number % STREAMS], number)

    async def _agent(self, stream: Stream, number: int) -> None:
        task_id = f"{self.name}-{number}"
        await stream.send({"type": "start", "task_id": task_id, "agent_id": f"agent-{number}"})
        answer = await first_of(stream, task_id, "started", "denied")
        began_s = trio.current_time()
        if answer["type"] == "denied":
            self.refused.append(answer["code"])
            return
        await first_of(stream, task_id, "stop")
        self.stopped_at_s.append(time.time())
        await trio.sleep(TIDY_UP_S)
        self.ran_ms.append(int((trio.current_time() - began_s) * 1_000))
        await stream.send(
            {
                "type": "finish",
                "task_id": task_id,
                "elapsed_ms": self.ran_ms[-1],
                "outcome": "cancelled",
            }
        )
        await first_of(stream, task_id, "finished")

    async def stops_s(self, database_url: str) -> list[float]:
        """Return how long after the budget had run out each agent knew."""
        rows = await query(
            database_url,
            "SELECT extract(epoch FROM started_at)::float8 AS at_s FROM tasks "
            "WHERE organization_id = $1",
            self.name,
        )
        out_s = exhausted_at_s([row["at_s"] for row in rows], LAST_MS)
        return [stopped_s - out_s for stopped_s in self.stopped_at_s]


async def first_of(stream: Stream, task_id: str, *kinds: str) -> Message:
    """Wait for the first message about a task that is of one of these kinds."""
    with trio.fail_after(30):
        while True:
            for kind in kinds:
                if (message := stream.find(kind, task_id=task_id)) is not None:
                    return message
            await stream._news.wait()


async def race_for_the_last_minute(database_url: str, rounds: int, slots: int) -> Findings:
    """Race `rounds` times, each time in an organization of its own."""
    found, used_ms = Findings(), dict[str, int]()
    async with running_meterd("--database-url", database_url, settings=SETTINGS) as service:
        for number in range(rounds):
            race = Race(f"race-{number}", slots)
            key = await tight_organization(service, race.name, slots, LAST_MS)
            await race.run(service, key)
            stops_s = await race.stops_s(database_url)
            found.stops_s += stops_s
            found.cycles += 1
            found.tasks += len(stops_s)
            found.acknowledgements += 2 * len(stops_s)  # `started` and `finished`
            used_ms[race.name] = LIMIT_MS - LAST_MS + sum(race.ran_ms)
            found.expect(used_ms[race.name] > LIMIT_MS, f"{race.name}: nobody ran past the limit")
            found.expect(
                max(stops_s) <= STOPPED_WITHIN_S,
                f"{race.name}: stopped {max(stops_s):.2f} s late",
            )
            found.expect(
                len(stops_s) <= slots and race.refused and set(race.refused) <= REFUSALS,
                f"{race.name}: {len(stops_s)} admitted, refused: {set(race.refused)}",
            )
        await compare_limits(found, database_url, used_ms)
        await found.audit("--database-url", database_url)
        found.expect(await service.stop() == 0, "SIGTERM did not end in exit 0")
    return found
