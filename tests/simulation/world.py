"""The world: a database, meterd processes on it, clients, a network, an operator and bad luck.

Safety phase: everything the weather allows goes wrong while people work. Liveness phase: nothing
goes wrong any more, and within minutes all must be quiet, exact and still enforced.
One seed decides everything; `trace` is a hash of all that was said and stored, in order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import msgspec
import structlog
import trio

from meterd.adapters.memory.store import Database, MemoryStore
from meterd.client.policy import UnreachablePolicy
from meterd.core.commands import Command, Decision, StartTask
from meterd.core.decide import decide
from meterd.core.organization import OrganizationState
from meterd.core.plan import Tier
from tests.make import FixedClock, make_new, make_profile, make_terms
from tests.organizations import make_period
from tests.simulation.auditor import Auditor
from tests.simulation.calm import become_quiet, boast, exhaust, lose_a_slot
from tests.simulation.clients import PATIENT, HonestClient, Liar
from tests.simulation.counting import EventBooks, Sender
from tests.simulation.determinism import Chance, seeded_run
from tests.simulation.keys import KeyBooks, KeyOwner
from tests.simulation.meterd_process import MeterdProcess, Outside, StripeTables
from tests.simulation.misfortune import Misfortune
from tests.simulation.network import LATE_S, Client, Network, Server
from tests.simulation.operator import Operator, drawn_contract
from tests.simulation.patience import audit_run, drawn_policy
from tests.simulation.redis_server import RedisServer
from tests.simulation.store import STALL_S
from tests.simulation.stripe_account import Inbox, Json, StripeAccount
from tests.simulation.stripe_auditor import StripeAuditor
from tests.simulation.violation import Violation
from tests.simulation.weather import Weather


@attrs.frozen(kw_only=True)
class Report:
    """What a world was like."""

    seed: int
    trace: str
    simulated_s: float
    frames: int
    flushes: int
    crashes: int
    acknowledged: int
    tasks: int
    events: int
    charges: int
    charged_cents: int
    notices: int


class World:
    """Everything of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.weather = Weather.drawn(seed)
        self.database = Database()
        self.auditor = Auditor(self.database)
        self.auditor.is_punctual = not (self.weather.frame_late or self.weather.wall_steps)
        self.auditor.late_start_ms = int(LATE_S[1] * 1_000) if self.weather.frame_late else 0
        self.auditor.tasks_max = self.weather.tasks_max
        self.chance = Chance(seed, "world")
        self.network = Network(Chance(seed, "network"), lambda: self.weather, self)
        self.processes: list[MeterdProcess] = []
        self.clients: list[HonestClient] = []
        self.flushes = 0
        self.crashes = 0
        self.wall_offset_ms = 0
        self.wall_back_ms = 0
        self.calls_to_crash: int | None = None
        self._broken: Violation | None = None
        self._hash = hashlib.sha256()
        self._spent = trio.Event()
        self._tasks = 0
        self._poison = Chance(seed, "poison")
        self.tables = StripeTables()
        self.events = EventBooks(self.database)
        self.senders: list[Sender] = []
        self.keys = KeyBooks()
        self.redis = RedisServer(seed, lambda: self.weather, self._remembering)
        self.calm_from_s = math.inf
        """From when on no call is under way any more that was stalled in the storm."""

    @property
    def organization_ids(self) -> list[str]:
        """Return everybody's name."""
        return sorted(self.database.organizations)

    def wall_ms(self) -> int:
        """Return what the system clock of meterd's machine shows."""
        return self.true_ms() + self.wall_offset_ms

    def true_ms(self) -> int:
        """Return the time it really is."""
        return self.weather.begins_at_ms + int(trio.current_time() * 1_000)

    def note(self, *facts: object) -> None:
        """Write into the trace."""
        self._hash.update(repr((round(trio.current_time(), 6), *facts)).encode())

    # --- the run ---------------------------------------------------------------------------------

    async def live(self) -> Report:
        """Live through the storm and the calm; raises Violation when a promise was broken."""
        self.account = StripeAccount(
            self.seed,
            network=self.network,
            weather=lambda: self.weather,
            true_ms=self.true_ms,
            note=self.note,
        )
        self.books = StripeAuditor(self.database, self.tables, self.account)
        self.account.fake.world.on_event.append(self._on_stripe_event)
        await self._create()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.network.run)
            nursery.start_soon(self.account.run)
            nursery.start_soon(self.account.tell, self._inbox)
            nursery.start_soon(self._keep_meterd_running, nursery)
            nursery.start_soon(self._compare)
            owners = {each: KeyOwner(self, each) for each in self.organization_ids}
            async with trio.open_nursery() as storm:
                for number in range(self.weather.clients):
                    storm.start_soon(self._customer, nursery, storm, number)
                misfortune = Misfortune(self)
                storm.start_soon(misfortune.kill)
                storm.start_soon(misfortune.cut_off_at_a_turn, nursery)
                storm.start_soon(misfortune.step_the_clock)
                storm.start_soon(self.account.be_used)
                storm.start_soon(self.account.be_away)
                storm.start_soon(self.account.be_mute)
                storm.start_soon(self.redis.be_restarted)
                operator = Operator(self, "operator")
                storm.start_soon(operator.debit_all)
                storm.start_soon(operator.run)
                storm.start_soon(operator.be_capped)
                for organization_id in self.organization_ids:
                    self._count_events(nursery, storm, organization_id)
                    storm.start_soon(owners[organization_id].run)
                await trio.sleep(self.weather.storm_s)
                self.weather = self.weather.calm()
                self.calls_to_crash = None
                storm.cancel_scope.cancel()
            self.calm_from_s = trio.current_time() + STALL_S[1] + 1
            await trio.sleep(self.chance.pick(0, 60))  # who does not pay is suspended
            self.account.settle()
            await Operator(self, "corrections").correct()
            await misfortune.put_clock_right()
            await become_quiet(self)
            await self._drill(nursery, owners.values())
            nursery.cancel_scope.cancel()
        self._raise_broken()
        runs = [run for client in self.clients for run in client.runs.values()]
        self.auditor.conclude(runs, lost_ms=self.wall_back_ms)
        for client in self.clients:
            for run in client.runs.values():
                until_s = min(client.died_s, trio.current_time())
                audit_run(run, client.settings, until_s=until_s)
        self.events.conclude()
        self.books.conclude()
        return Report(
            seed=self.seed,
            trace=self._hash.hexdigest(),
            simulated_s=trio.current_time(),
            frames=self.network.delivered,
            flushes=self.flushes,
            crashes=self.crashes,
            acknowledged=self.auditor.acknowledged + self.events.acknowledged,
            events=sum(len(record.events) for record in self.database.organizations.values()),
            tasks=len(runs),
            charges=len(self.tables.charges),
            charged_cents=self.books.charged_cents,
            notices=len(self.tables.events),
        )

    async def _drill(self, nursery: trio.Nursery, owners: Iterable[KeyOwner]) -> None:
        """Try in calm weather what must work to the second."""
        self.books.conclude()  # before further notices heal what went wrong
        self.account.upgrade_all()  # what happens after the storm arrives as ever
        await become_quiet(self)
        await lose_a_slot(self, nursery)
        await boast(self)
        await exhaust(self, nursery)
        for owner in owners:
            await owner.drill()
        drill = Operator(self, "drill")
        await self.redis.drill(lambda: drill.sell(self.organization_ids[-1]))

    async def _create(self) -> None:
        clock = FixedClock(self.true_ms())
        store = MemoryStore(self.database, epoch=0, clock=clock)
        organization_ids = [f"org_{number}" for number in range(self.weather.organizations)]
        self.account.remember(
            [each for each in organization_ids if self.chance.happens(0.85)],
            begins_s=self.true_ms() // 1_000,
            storm_s=self.weather.storm_s,
        )
        customers = {each.organization_id: each for each in self.account.customers}
        for organization_id in organization_ids:
            customer = customers.get(organization_id)
            contract = drawn_contract(self.chance, is_sold=customer is not None)
            plan = self.chance.pick(Tier.FREE, Tier.STARTER, Tier.PRO, Tier.ENTERPRISE)
            new = make_new(
                organization_id,
                profile=make_profile(
                    stripe_customer_id=customer.id if customer and customer.is_linked else None
                ),
                terms=make_terms(plan, contract),
                period=make_period(at_ms=self.true_ms()),
            )
            await store.create_organization(new)

    # --- customers -------------------------------------------------------------------------------

    async def _customer(self, forever: trio.Nursery, storm: trio.Nursery, number: int) -> None:
        """Keep a client process alive through the storm; now and then it dies and comes again."""
        chance = Chance(self.seed, f"customer {number}")
        organization_id = chance.pick(*self.organization_ids)
        if chance.happens(0.2):
            liar = Liar(
                organization_id,
                network=self.network,
                find_server=self.find_server,
                chance=chance,
            )
            storm.start_soon(liar.run)
            return
        dies_every_s = chance.pick(0.0, 0.0, 60.0)
        while True:
            policy = drawn_policy(chance)
            client = self.new_client(forever, organization_id, chance, policy)
            with trio.move_on_after(chance.soon(dies_every_s) if dies_every_s else 10_000):
                await self._work(forever, client, chance)
            client.die()

    def _count_events(
        self, forever: trio.Nursery, storm: trio.Nursery, organization_id: str
    ) -> None:
        sender = Sender(
            organization_id,
            books=self.events,
            chance=Chance(self.seed, f"sender of {organization_id}"),
            weather=lambda: self.weather,
            find_meterd=lambda: self.current,
            true_ms=self.true_ms,
        )
        self.senders.append(sender)
        storm.start_soon(sender.count)
        forever.start_soon(sender.run)

    def new_client(
        self,
        forever: trio.Nursery,
        organization_id: str,
        chance: Chance,
        unreachable: UnreachablePolicy = PATIENT,
    ) -> HonestClient:
        """Start a client process."""
        client = HonestClient(
            organization_id,
            network=self.network,
            find_server=self.find_server,
            chance=chance,
            unreachable=unreachable,
        )
        self.clients.append(client)
        forever.start_soon(client.run)
        return client

    async def _work(self, forever: trio.Nursery, client: HonestClient, chance: Chance) -> None:
        """Start tasks, one after the other or many at once, and lose the network for a while."""
        offline_every, offline_s = chance.sometimes(0.2), chance.pick(60, 60, 150)
        while True:
            await trio.sleep(chance.soon(4.0))
            if client.session.task_count < 4:
                is_crowd = chance.happens(0.08)
                agent_id = f"agent_{chance.whole(1, 3)}" if is_crowd else None
                for _ in range(10 if is_crowd else chance.pick(1, 1, 2, 5)):
                    self.start_task(forever, client, chance, agent_id=agent_id)
            if chance.happens(offline_every):
                client.go_offline(chance.between(1, offline_s))

    def start_task(
        self,
        forever: trio.Nursery,
        client: HonestClient,
        chance: Chance,
        *,
        lasts_s: float | None = None,
        agent_id: str | None = None,
    ) -> str:
        """Let a client run one task of some agent."""
        self._tasks += 1
        task_id = f"task_{self._tasks}"
        agent = agent_id or f"agent_{chance.whole(1, 3)}"
        lasts = chance.pick(0.5, 5.0, 20.0, chance.soon(60.0)) if lasts_s is None else lasts_s
        obeys = lasts_s is not None or chance.happens(0.8)
        outcome = chance.pick("succeeded", "failed")
        if self._poison.happens(self.weather.poisoned):
            for process in self.processes:
                process.store.poison[task_id] = self._poison.whole(1, 3)

        async def work() -> None:
            run = await client.work(task_id, agent, lasts_s=lasts, obeys=obeys, outcome=outcome)
            self.note("ran", task_id, run.ran_ms, run.outcome)

        forever.start_soon(work)
        return task_id

    # --- meterd ----------------------------------------------------------------------------------

    def find_server(self) -> Server | None:
        """Return a process that a client reaches now: usually the newest."""
        alive = [process for process in self.processes if not process.is_dead]
        if not alive:
            return None
        return alive[0] if self.chance.happens(0.3) else alive[-1]

    @property
    def current(self) -> MeterdProcess | None:
        """Return the process that owns the database and serves."""
        for process in reversed(self.processes):
            if process.epoch == self.database.epoch and process.is_accepting:
                return process
        return None

    async def _keep_meterd_running(self, nursery: trio.Nursery) -> None:
        """Be the machine's own supervisor: what died is started again."""
        while True:
            process = MeterdProcess(
                self.database,
                Outside(self.tables, self.account, self.redis),
                chance=Chance(self.seed, f"process {self.database.epoch}"),
                wall_ms=self.wall_ms,
                weather=lambda: self.weather,
                witness=self,
                decide=self._decide,
            )
            for older in self.processes:
                process.store.poison.update(older.store.poison)
            self.processes.append(process)
            self.note("start", process.epoch)
            await nursery.start(process.run)
            self._spent = trio.Event()
            with trio.CancelScope() as waiting:
                self.waiting = waiting
                await process.ended.wait()
            if not process.is_dead:
                continue  # another instance takes over while this one lives on
            self.note("dead", process.epoch)
            self.crashes += 1
            self.auditor.audit()
            self.events.audit()
            down_s = self.weather.down_s if self.weather.crash_every_s else 0.5
            await trio.sleep(self.chance.between(0.05, down_s))

    def passing(self, point: str) -> None:
        """See a store call pass a point; `Witness`."""
        if self.calls_to_crash is None:
            return
        self.calls_to_crash -= 1
        if self.calls_to_crash <= 0:
            self.calls_to_crash = None
            self.note("killed at", point)
            process = self.current or self.processes[-1]
            process.die()

    def _decide(self, state: OrganizationState, command: Command, now_ms: int) -> Decision:
        """Decide as ever; a bug of ours is simulated for some starts."""
        if isinstance(command, StartTask) and self._poison.happens(self.weather.bug):
            raise ZeroDivisionError("a simulated bug")
        return decide(state, command, now_ms)

    def _inbox(self) -> Inbox | None:
        """Return where Stripe's notices arrive now."""
        process = self.current
        return None if process is None else process.hear

    def _on_stripe_event(self, event: Json) -> None:
        self.note("event", event["type"], event["id"])
        with self._remembering():
            self.books.on_event(event)

    # --- what is seen ----------------------------------------------------------------------------

    def on_flush(self, epoch: int, batches: Sequence[Any]) -> None:
        """See a commit; `Witness`."""
        self.flushes += 1
        self.note("flush", epoch, *((b.organization_id, b.seq, len(b.rows)) for b in batches))
        self.auditor.wall_ms = self.true_ms()
        with self._remembering():
            self.auditor.on_flush(batches)

    def client_says(self, client: Client, frame: str) -> None:
        """Hear a client; `Overheard`."""
        self.note("up", frame)
        content = json.loads(frame)
        for message in content if isinstance(content, list) else [content]:
            self.auditor.client_says(client, message, self.true_ms())

    def server_says(self, server: Server, client: Client, frame: bytes) -> None:
        """Hear meterd; `Overheard`."""
        self.note("down", server.epoch, frame)
        content = msgspec.json.decode(frame)
        for message in content if isinstance(content, list) else [content]:
            with self._remembering():
                self.auditor.server_says(server, client, message)

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Keep a violation seen inside meterd, whose supervisor would take it for its own bug."""
        try:
            yield
        except Violation as violation:
            self._broken = self._broken or violation

    def _raise_broken(self) -> None:
        if self._broken is not None:
            raise self._broken

    async def _compare(self) -> None:
        """Compare live actors with the store whenever nothing waits between the two."""
        while True:
            await trio.sleep(1.7)
            self._raise_broken()
            process = self.current
            if process is None:
                continue
            if self.weather.has_redis and trio.current_time() > self.calm_from_s:
                self.redis.compare(process)
            timeout_ms = self.weather.task_timeout_ms
            for cell in process.organizations.cells:
                is_at_rest = cell.phase.value == "ready" and cell.mailbox is None
                if is_at_rest and not process.ledger.waiting(cell.organization_id):
                    self.auditor.compare_live(cell.state, process.clock.now_ms(), timeout_ms)


def simulate(seed: int) -> Report:
    """Live through one world. Errors: Violation, or whatever a bug of ours raises."""
    before = structlog.get_config()
    structlog.configure(processors=[_say_nothing])
    try:
        return seeded_run(seed, World(seed).live)
    finally:
        structlog.configure(**before)


def _say_nothing(_logger: object, _name: str, _event: object) -> Any:
    raise structlog.DropEvent
