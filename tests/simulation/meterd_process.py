"""One meterd process of a simulated world: the real core, actors, ledger and agent sessions.

A crash is not a cancel: the process is fenced off first - its store, its connections and its
orders have no effect any more - and only then are its tasks thrown away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import attrs
import stripe
import trio

from meterd.actors.cells import ActorPolicy, Cells, Decide
from meterd.actors.charge_policy import ChargePolicy
from meterd.actors.charges import Charges
from meterd.actors.keyring import KeyRing, Principal
from meterd.actors.ledger import FlushPolicy, Ledger
from meterd.actors.mirror import Mirror, MirrorPolicy
from meterd.actors.organizations import Organizations
from meterd.actors.reconciliation import StripeReconciliation
from meterd.actors.scheduler import Job, Order, RetryPolicy, Scheduler, Work
from meterd.actors.stripe import StripeActor, StripePolicy
from meterd.actors.supervisor import EscalatedError, Service
from meterd.adapters.clock import SystemClock
from meterd.adapters.ids import IdSource
from meterd.adapters.memory.charges import MemoryCharges
from meterd.adapters.memory.store import Database, MemoryStore
from meterd.adapters.memory.stripe import Kept, MemoryStripe
from meterd.adapters.stripe.billing import StripeBilling
from meterd.adapters.stripe.client import StripePayments
from meterd.core.commands import Voided, VoidEvent
from meterd.core.event import EventKey, UsageEvent
from meterd.core.organization import Rules
from meterd.core.overage import Charge
from meterd.core.schedule import Hourly, JobRun
from meterd.core.stripe_objects import read_event
from meterd.core.supervision import StrikePolicy
from meterd.errors import MeterdError, OwnershipLostError, StoreUnavailableError
from meterd.ports.stripe import SeenInvoice, SeenSubscription
from meterd.web.agent_session import AgentSession
from meterd.web.events import booked
from meterd.web.services import WebServices
from tests.job_store import NaiveJobStore
from tests.organizations import CATALOGUE
from tests.simulation.determinism import Chance
from tests.simulation.network import Line, ServerEnd
from tests.simulation.redis_server import REFRESH_S, RedisServer
from tests.simulation.store import SimulatedStore, Weathered, Witness
from tests.simulation.stripe_account import StripeAccount
from tests.simulation.stripe_line import StripeLine
from tests.simulation.weather import Weather


EXPECTED_ENDS = (OwnershipLostError, EscalatedError, StoreUnavailableError)
"""What a process may die of by itself; anything else is a bug."""


PRICED = attrs.evolve(
    CATALOGUE, api_call_usd=Decimal("0.000125"), websocket_minute_usd=Decimal("0.0075")
)
"""Events cost something here, so that what becomes of them shows on invoices."""

ANSWER_S = 10
"""So long those who ask wait for an answer."""

STRIPE_POLICY = StripePolicy(retry_max_ms=20_000, away_max_ms=10_000)

MIRROR_POLICY = MirrorPolicy(refresh_ms=REFRESH_S * 1_000, retry_max_ms=8_000)

CHARGE_POLICY = ChargePolicy(
    retry_max_ms=30_000, look_min_ms=40_000, look_max_ms=60_000, away_max_ms=10_000
)
"""As in production, but for waits of hours: a draft lives two minutes here, not an hour."""


@attrs.define
class StripeTables:
    """What meterd's database holds of Stripe."""

    events: dict[str, Kept] = attrs.Factory(dict)
    subscriptions: dict[str, tuple[str, SeenSubscription]] = attrs.Factory(dict)
    invoices: dict[str, tuple[str, SeenInvoice]] = attrs.Factory(dict)
    charges: dict[str, Charge] = attrs.Factory(dict)
    marks: dict[tuple[str, int], int] = attrs.Factory(dict)
    jobs: NaiveJobStore = attrs.Factory(NaiveJobStore)
    work_done: Counter[tuple[str, str]] = attrs.Factory(Counter)
    """By job and subject: how often its work was done to the end."""


@attrs.frozen
class Outside:
    """What a process deals with besides its agents and their ledger."""

    tables: StripeTables
    account: StripeAccount
    redis: RedisServer


@attrs.define
class OwnersJobs:
    """The jobs of the database: who has lost it begins no run, and interrupts none."""

    jobs: NaiveJobStore
    is_owner: Callable[[], bool]

    def __getattr__(self, name: str) -> Any:
        """Return what asks for no owner."""
        return getattr(self.jobs, name)

    async def begin(self, run: JobRun) -> bool:
        """Write that a run begins."""
        await trio.lowlevel.checkpoint()
        return self.is_owner() and await self.jobs.begin(run)

    async def interrupt_runs(self, at_ms: int) -> None:
        """Close the runs that an earlier process has left open."""
        await trio.lowlevel.checkpoint()
        if self.is_owner():
            await self.jobs.interrupt_runs(at_ms)


class RedisLine:
    """The way of one process to Redis: what is written after its death has no effect."""

    def __init__(self, redis: RedisServer, process: MeterdProcess) -> None:
        self._redis = redis
        self._process = process

    async def put(self, quotas: Sequence[tuple[str, bytes]], *, ttl_ms: int) -> None:
        """Write quotas. Errors: SinkUnavailableError."""
        if self._process.is_dead:
            await trio.sleep_forever()
        await self._redis.put(quotas, ttl_ms)


class KeyPort(Weathered):
    """The keys of the database; it notes which looks for revocations were answered."""

    def __init__(self, port: Weathered) -> None:
        super().__init__(port._port, port._call)
        self.read_s = 0.0
        self._count, self._counted_s = 0, 0.0
        self._seen = -1

    async def revocations(self) -> int:
        """Return how many keys were revoked; as many as were seen is a look that was answered."""
        began_s = trio.current_time()
        self._count = await self._call("revocations", self._port.revocations)
        self._counted_s = began_s
        if self._count == self._seen:
            self.read_s = began_s
        return self._count

    async def revoked_among(self, key_ids: Sequence[str]) -> Sequence[str]:
        """Return which of these keys are revoked."""
        found: Sequence[str] = await self._call(
            "revoked_among", lambda: self._port.revoked_among(key_ids)
        )
        self._seen, self.read_s = self._count, self._counted_s
        return found


class MeterdProcess:
    """One process from its start to its end."""

    def __init__(
        self,
        database: Database,
        outside: Outside | None = None,
        *,
        chance: Chance,
        wall_ms: Callable[[], int],
        weather: Callable[[], Weather],
        witness: Witness,
        decide: Decide,
    ) -> None:
        settings = weather()
        self.is_dead = False
        self.is_accepting = False
        self.clock = SystemClock(wall_ms)
        self.store = SimulatedStore(
            database, clock=self.clock, chance=chance, weather=weather, witness=witness
        )
        self.epoch = self.store.epoch
        ids = IdSource(self.clock.now_ms, chance.random)
        self.ledger = Ledger(
            self.store,
            clock=self.clock,
            ids=ids,
            jitter=chance.jitter(),
            policy=FlushPolicy(
                interval_ms=settings.flush_interval_ms,
                rows_max=settings.rows_max,
                journal_max=settings.journal_max,
            ),
        )
        cells = Cells(
            self.store,
            self.ledger,
            rules=Rules(
                catalogue=PRICED,
                task_timeout_ms=settings.task_timeout_ms,
                record_interval_ms=settings.record_interval_ms,
                payment_grace_ms=settings.payment_grace_ms,
                tasks_per_organization=settings.tasks_max,
            ),
            clock=self.clock,
            ids=ids,
            jitter=chance.jitter(),
            policy=ActorPolicy(
                mailbox_max=settings.mailbox_max,
                ask_timeout_ms=settings.ack_timeout_ms,
                ack_timeout_ms=settings.ack_timeout_ms,
                passivate_after_ms=settings.passivate_after_ms,
                strikes=StrikePolicy(quarantine_ms=20_000),
            ),
            decide=decide,
            slowing=lambda: self.clock.slowing,
        )
        self.organizations = Organizations(cells)
        self._services: dict[str, Callable[[], Awaitable[None]]] = {
            "ledger": self.ledger.run,
            "activation": self.organizations.cells.activation.run,
            "timers": self.organizations.cells.timers.run,
            "janitor": self.organizations.cells.run_janitor,
        }
        self._chance = chance
        self._has_keys = settings.keys_every_s > 0
        self._key_port = KeyPort(
            self.store.weathered(MemoryStore(database, epoch=self.epoch, clock=self.clock))
        )
        if outside is not None:
            self._follow_stripe(database, outside.tables, outside.account, chance, weather)
            if settings.has_redis:
                self._mirror_to(outside.redis)
        self.ended = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._lines: list[Line] = []

    def _mirror_to(self, redis: RedisServer) -> None:
        """Put the mirror in place, as `notifying` does."""
        mirror = Mirror(
            self.organizations,
            RedisLine(redis, self),
            encode=lambda view: redis.encode(self, view),
            jitter=self._chance.jitter(),
            policy=MIRROR_POLICY,
        )
        self.organizations.cells.on_change = mirror.note
        self._services["mirror"] = mirror.run

    def _follow_stripe(
        self,
        database: Database,
        tables: StripeTables,
        account: StripeAccount,
        chance: Chance,
        weather: Callable[[], Weather],
    ) -> None:
        """Put the Stripe actor and the charges in place, as `system` and `charging` do."""
        client = stripe.StripeClient(
            "sk_test_x",
            http_client=StripeLine(account, chance=chance, weather=weather),
            max_network_retries=weather().stripe_retries,
        )
        payments = StripePayments(client, livemode=False, jitter=chance.jitter())
        billing = StripeBilling(payments)
        directory = MemoryStore(database, epoch=self.epoch, clock=self.clock)
        inbox = MemoryStripe(
            organization_with=lambda customer_id, named: owner_of(database, customer_id, named),
            is_owned=lambda: database.epoch == self.epoch,
            events=tables.events,
            subscriptions=tables.subscriptions,
            invoices=tables.invoices,
        )
        charges = MemoryCharges(database, self.epoch, kept=tables.charges, marks=tables.marks)
        self.inbox = self.store.weathered(inbox)
        kept = self.store.weathered(charges)
        self.charges = Charges(
            kept,
            billing,
            self.organizations,
            clock=self.clock,
            jitter=chance.jitter(),
            policy=attrs.evolve(CHARGE_POLICY, wait_ms=weather().charge_wait_ms),
        )
        self.follower = StripeActor(
            self.inbox,
            payments,
            self.organizations,
            self.store.weathered(directory),
            clock=self.clock,
            jitter=chance.jitter(),
            policy=STRIPE_POLICY,
            on_invoices=lambda _organization_id, _invoices: self.charges.kick(),
        )
        self.reconciliation = StripeReconciliation(
            kept,
            self.inbox,
            billing,
            self.charges,
            self.follower,
            self.organizations,
            clock=self.clock,
            ids=IdSource(self.clock.now_ms, chance.random),
        )
        self.scheduler = Scheduler(
            [
                Job(
                    name="report", schedule=Hourly(weather().job_minute), work=self._report(tables)
                ),
                Job(
                    name="stripe_reconciliation",
                    schedule=Hourly(weather().job_minute),
                    work=self._reconcile,
                    after=("report",),
                ),
            ],
            self.store.weathered(OwnersJobs(tables.jobs, lambda: database.epoch == self.epoch)),
            zone=UTC,
            clock=self.clock,
            ids=IdSource(self.clock.now_ms, chance.random),
            jitter=chance.jitter(),
            policy=RetryPolicy(delay_min_ms=1_000, delay_max_ms=10_000),
        )
        self._reconciles = weather().reconciles
        self._services |= {
            "stripe": self.follower.run,
            "charges": self.charges.run,
            "scheduler": self.scheduler.run,
        }

    def _report(self, tables: StripeTables) -> Work:
        """Return a job that takes a while and leaves something behind at its end."""

        async def work(order: Order) -> dict[str, Any]:
            await trio.sleep(2)
            tables.work_done["report", order.subject] += 1
            return {}

        return work

    async def _reconcile(self, order: Order) -> dict[str, Any]:  # noqa: ARG002  # of now
        if not self._reconciles:
            return {}
        return {"differences": len((await self.reconciliation.run()).differences)}

    # --- requests --------------------------------------------------------------------------------

    async def answers(self, ask: Callable[[], Awaitable[None]]) -> bool:
        """Serve a request; False when there is no 2xx, or nobody left to give it."""
        if not self.is_accepting:
            return False
        try:
            await ask()
        except MeterdError:
            return False
        return not self.is_dead

    async def ask(self, ask: Callable[[], Awaitable[None]]) -> bool:
        """Wait for the answer to a request; False when no 2xx came, or too late."""
        answered = trio.Event()

        async def work() -> None:
            if await self.answers(ask):
                answered.set()

        self.spawn(work)
        with trio.move_on_after(ANSWER_S):
            await answered.wait()
        return answered.is_set()

    async def take_events(
        self, organization_id: str, events: Sequence[UsageEvent]
    ) -> Sequence[str]:
        """Book events as the route does; returns what became of each. Errors: MeterdError."""
        items = await booked(self._web, organization_id, events)
        return [item.status if item.error is None else item.error.code for item in items]

    async def void_event(self, organization_id: str, key: EventKey) -> None:
        """Take an event back as the route does. Errors: MeterdError."""
        source, event_id = key
        command = VoidEvent(event_id=event_id, source=source, reason="a mistake")
        answer = await self.organizations.ask(organization_id, command)
        assert isinstance(answer.outcome, Voided), answer
        await self.organizations.durable(organization_id, answer.seq)

    async def hear(self, payload: str) -> bool:
        """Take a notice of Stripe as the webhook's route does; False: it was not kept."""
        event = read_event(payload)
        assert event is not None, payload
        try:
            await self.inbox.keep_event(event, at_ms=self.clock.now_ms())
        except MeterdError:
            return False
        self.follower.kick()
        return True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live; returns when the process has died, however it did."""
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self.is_dead:
                    return
                self.keyring = await self._open_keyring()
                if self._has_keys:
                    self._services["keyring"] = self.keyring.watch
                for name, run in self._services.items():
                    nursery.start_soon(Service(name, run, clock=self.clock).run)
                await self.organizations.cells.activate_at_work()
                self.is_accepting = True
                await trio.sleep_forever()
        except* EXPECTED_ENDS:
            pass
        finally:
            self.die()
            self.ended.set()

    async def _open_keyring(self) -> KeyRing:
        """Open the key ring as `system` does; the store may be away, and the process ends."""
        return await KeyRing.open(
            self._key_port,
            clock=self.clock,
            ids=IdSource(self.clock.now_ms, self._chance.random),
            chance=self._chance.random.randbytes,
            admin_key="an admin key of the configuration",
            say=lambda _text: None,
        )

    @property
    def revocations_read_s(self) -> float:
        """Return when the latest look for revocations began that was answered."""
        return self._key_port.read_s

    def die(self) -> None:
        """Lose the process at this very step."""
        if self.is_dead:
            return
        self.is_dead, self.is_accepting = True, False
        self.store.die()
        lines, self._lines = self._lines, []
        for line in lines:
            line.cut()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def stop(self, deadline_s: float) -> None:
        """Stop as a signal would: nothing new, flush what is accepted, then end."""
        self.is_accepting = False
        self.organizations.cells.stop()
        try:
            with trio.move_on_after(deadline_s):
                await self.ledger.drained()
        finally:  # the storm may end meanwhile
            self.die()

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run something that dies with the process."""
        if self._nursery is not None and not self.is_dead:
            self._nursery.start_soon(work)

    def open_session(self, end: ServerEnd) -> AgentSession:
        """Begin an agent stream."""
        self._lines.append(end.line)
        principal = Principal(
            key_id="key_1",
            organization_id=end.client.organization_id,
            scopes=frozenset({"agent"}),
        )
        return AgentSession(end, services=self._web, principal=principal, spawn=self.spawn)

    @property
    def _web(self) -> WebServices:
        services: Any = SimpleNamespace(
            organizations=self.organizations,
            config=SimpleNamespace(upgrade_url=None),
            connections=None,
            keyring=self.keyring,
        )
        return cast("WebServices", services)


def owner_of(database: Database, customer_id: str | None, named: str | None) -> str | None:
    """Return whose customer it is, else the organization named if there is one."""
    for key, record in database.organizations.items():
        if customer_id is not None and record.profile.stripe_customer_id == customer_id:
            return key
    return named if named in database.organizations else None
