"""One scripted hour in the life of a customer: everything that breaks, at its minute.

The real client talks to the real actors and ledger in virtual time, with the defaults of both.
The hour crosses the end of a month, so bills are of two periods.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
import msgspec
import trio

from meterd.adapters.memory.store import Database, MemoryStore, OrganizationRecord
from meterd.client import FailClosed, FailOpen
from meterd.core.decide import decide
from meterd.core.plan import Contract, Tier
from meterd.core.task import TaskState
from meterd.core.units import MINUTE_MS, SECOND_MS
from tests.make import FixedClock, make_new, make_terms
from tests.organizations import make_period
from tests.simulation.auditor import Auditor
from tests.simulation.customer import Program, SimulatedTransport
from tests.simulation.determinism import Chance
from tests.simulation.meterd_process import MeterdProcess
from tests.simulation.network import Client, Network, Server
from tests.simulation.weather import MONTH_END_MS, Weather


HOUR_S = 3_600.0

CALM = attrs.evolve(
    Weather.drawn(0).calm(),
    begins_at_ms=MONTH_END_MS - 25 * MINUTE_MS,
    task_timeout_ms=60 * SECOND_MS,
    record_interval_ms=10 * MINUTE_MS,
    flush_interval_ms=20,
    rows_max=500,
    journal_max=100_000,
    mailbox_max=1_000,
    keys_every_s=0.0,
    has_redis=False,
    tasks_max=10_000,
    passivate_after_ms=10 * MINUTE_MS,
    ack_timeout_ms=5_000,
)


@attrs.frozen
class Kill:
    """meterd dies without a word and is away for so long."""

    away_s: float


@attrs.frozen
class Replace:
    """meterd is stopped as a deployment would, and is back after a second."""


@attrs.frozen
class Partition:
    """The customer's network carries nothing for so long, and says nothing about it."""

    seconds: float


@attrs.frozen
class StoreAway:
    """The database refuses every call for so long."""

    seconds: float


@attrs.frozen
class Step:
    """Somebody sets the clock of meterd's machine."""

    milliseconds: int


Mishap = Kill | Replace | Partition | StoreAway | Step

SCRIPT: tuple[tuple[int, Mishap], ...] = (
    (3, Kill(away_s=2)),
    (6, Partition(seconds=15)),  # shorter than anybody notices
    (8, Partition(seconds=50)),
    (11, Kill(away_s=90)),  # longer than a task may be silent
    (14, Step(20_000)),  # slewed
    (16, Partition(seconds=170)),  # every task is lost meanwhile, and comes again
    (20, StoreAway(seconds=45)),
    (22, Step(-45_000)),  # time is held back, and no honest report with it
    (23, Step(45_000)),  # put right before the restart, which would believe the clock
    (24, Kill(away_s=70)),  # away while the month ends
    (28, Step(3_600_000)),  # a jump: reported, not followed
    (31, Step(-3_600_000)),
    (33, Replace()),
    (35, Partition(seconds=30)),
    (35, Kill(away_s=10)),
    (38, Step(600_000)),
    (39, Kill(away_s=5)),  # the restart believes the clock
    (42, StoreAway(seconds=20)),
    (42, Kill(away_s=3)),
    (45, Step(-2_000)),
    (46, Kill(away_s=1)),  # within the five seconds by which a report may be implausible
    *((48, Kill(away_s=0.2)) for _ in range(5)),
    (52, Partition(seconds=61)),
    (55, Replace()),
    (57, Kill(away_s=4)),
)
"""Minute by minute; of one minute, one after the other."""

AMID_OUTAGE_S = 11.25 * 60
"""When meterd is away for longer than a start waits."""

ORGANIZATIONS = {
    "steady": make_terms(Tier.ENTERPRISE),
    "hopeful": make_terms(Tier.ENTERPRISE),
    "tight": make_terms(Tier.STARTER, Contract(agent_minutes=20)),
}
AGENTS = {"steady": 6, "hopeful": 3, "tight": 3}


class Hour:
    """The world of the hour; `live` it, then look at what is left."""

    def __init__(self) -> None:
        self.database = Database()
        self.auditor = Auditor(self.database)
        self.weather = CALM
        self.network = Network(Chance(0, "network"), lambda: self.weather, self)
        self.programs: dict[str, Program] = {}
        self.deaths = 0
        self.lost: set[str] = set()
        """Tasks that meterd gave up for a while, after a silence past the time-out."""
        self._process: MeterdProcess | None = None
        self._away_s = 1.0
        self._clock_offset_ms = 0

    def record(self, organization_id: str) -> OrganizationRecord:
        """Return what is stored of an organization."""
        return self.database.organizations[organization_id]

    async def live(self) -> None:
        """Let the hour pass; afterwards everybody has settled."""
        await self._create()
        async with trio.open_nursery() as forever:
            forever.start_soon(self.network.run)
            forever.start_soon(self._keep_running, forever)
            async with trio.open_nursery() as hour:
                for name, agents in AGENTS.items():
                    hour.start_soon(self._run_program, name, agents)
                hour.start_soon(self._break_things, hour)
            forever.cancel_scope.cancel()
        self.auditor.audit()

    async def _create(self) -> None:
        store = MemoryStore(self.database, epoch=0, clock=FixedClock(self._true_ms()))
        for name, terms in ORGANIZATIONS.items():
            period = make_period(at_ms=self._true_ms())
            await store.create_organization(make_new(name, terms=terms, period=period))

    async def _run_program(self, name: str, agents: int) -> None:
        policy = FailOpen() if name == "hopeful" else FailClosed(running_minutes=60)
        transport = SimulatedTransport(name, self.network, self._find_server)
        program = self.programs[name] = Program(transport, Chance(0, name), policy)
        async with program.client, trio.open_nursery() as nursery:
            for number in range(agents):
                mean_s = (8.0, 90.0, 700.0)[number % 3]
                nursery.start_soon(program.work, f"agent-{number}", mean_s, HOUR_S)
            if name != "tight":  # and one lives through everything
                nursery.start_soon(program.run_task, "agent-long", HOUR_S)
            await trio.sleep(AMID_OUTAGE_S)
            if name == "hopeful":
                nursery.start_soon(program.run_task, "agent-late", 100.0)

    async def _keep_running(self, forever: trio.Nursery) -> None:
        while True:
            self._process = process = MeterdProcess(
                self.database,
                chance=Chance(0, f"process {self.database.epoch}"),
                wall_ms=lambda: self._true_ms() + self._clock_offset_ms,
                weather=lambda: self.weather,
                witness=self,
                decide=decide,
            )
            await forever.start(process.run)
            await process.ended.wait()
            self.deaths += 1
            self.auditor.audit()
            await trio.sleep(self._away_s)

    async def _break_things(self, hour: trio.Nursery) -> None:
        for minute, mishap in SCRIPT:
            await trio.sleep_until(max(minute * 60.0, trio.current_time() + 5))
            match mishap:
                case Kill(away_s=away_s):
                    assert self._process is not None
                    self._away_s = away_s
                    self._process.die()
                case Replace():
                    assert self._process is not None
                    self._away_s = 1.0
                    await self._process.stop(5)
                case Partition(seconds=seconds):
                    for program in self.programs.values():
                        hour.start_soon(program.transport.lose_network, seconds)
                case StoreAway(seconds=seconds):
                    hour.start_soon(self._lose_store, seconds)
                case Step(milliseconds=milliseconds):
                    self._clock_offset_ms += milliseconds

    async def _lose_store(self, seconds: float) -> None:
        self.weather = attrs.evolve(CALM, refused=1.0)
        await trio.sleep(seconds)
        self.weather = CALM

    def _find_server(self) -> Server | None:
        return self._process

    def _true_ms(self) -> int:
        return CALM.begins_at_ms + int(trio.current_time() * 1_000)

    # What is overheard.

    def client_says(self, client: Client, frame: str) -> None:
        """Hear a client; `Overheard`."""
        for message in _messages(json.loads(frame)):
            self.auditor.client_says(client, message, self._true_ms())

    def server_says(self, server: Server, client: Client, frame: bytes) -> None:
        """Hear meterd; `Overheard`."""
        for message in _messages(msgspec.json.decode(frame)):
            self.auditor.server_says(server, client, message)

    def on_flush(self, epoch: int, batches: Sequence[Any]) -> None:
        """See a commit; `Witness`."""
        del epoch
        self.auditor.wall_ms = self._true_ms()
        self.auditor.wall_ahead_ms = max(self.auditor.wall_ahead_ms, self._clock_offset_ms)
        self.auditor.on_flush(batches)
        for batch in batches:
            self.lost |= {task.task_id for task in batch.moved if task.state is TaskState.LOST}

    def passing(self, point: str) -> None:
        """See a store call pass a point; `Witness`."""


def _messages(content: Any) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else [content]
