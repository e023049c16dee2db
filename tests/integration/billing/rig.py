"""A meterd in memory and a fake Stripe without a network, in virtual time.

Everything of meterd's is real but the database: actors, the package `stripe`, its retries. Calls
go through `Wire`, which hands them to the fake and can end the one who calls, before or after the
work was done.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import attrs
import httpx
import stripe
import trio

from meterd.actors.cells import ActorPolicy, Cells
from meterd.actors.charge_policy import ChargePolicy
from meterd.actors.charges import Charges
from meterd.actors.ledger import FlushPolicy, Ledger
from meterd.actors.organizations import Organizations
from meterd.actors.reconciliation import StripeReconciliation
from meterd.actors.stripe import StripeActor, StripePolicy
from meterd.adapters.ids import IdSource
from meterd.adapters.memory.charges import MemoryCharges
from meterd.adapters.memory.store import Database, MemoryStore
from meterd.adapters.memory.stripe import MemoryStripe
from meterd.adapters.stripe.billing import StripeBilling
from meterd.adapters.stripe.client import StripePayments
from meterd.core.commands import Adjust, Adjusted, Audited, ChangeOrganization, Done
from meterd.core.decide import decide
from meterd.core.organization import Profile, Rules
from meterd.core.period import calendar_period
from meterd.core.plan import NO_CONTRACT, Catalogue, Contract, Terms, Tier, resolve
from meterd.core.stripe_objects import read_event
from meterd.core.units import DAY_MS, MINUTE_MS, SECOND_MS
from meterd.ports.directory import NewOrganization
from meterd.testing.fake_stripe.api import Call
from meterd.testing.fake_stripe.clock import VirtualClock
from meterd.testing.fake_stripe.faults import Faults
from meterd.testing.fake_stripe.handle import FakeStripe
from meterd.testing.fake_stripe.world import World
from tests.organizations import CATALOGUE


START_S = 1_767_225_600
"""2026-01-01T00:00:00Z."""

DAY_S = 86_400
AUDITED = Audited(actor="key_admin", reason="a test")


class Wire(httpx.AsyncBaseTransport):
    """Hands requests to the fake; ends the caller when it is told to."""

    def __init__(self, fake: FakeStripe) -> None:
        self.fake = fake
        self.kill: Callable[[], bool] = lambda: False
        """Asked before and after each request; True ends the caller there."""
        self.scope: trio.CancelScope | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer as the fake does; a lost reply is a broken connection."""
        body = await request.aread()
        await self._kill_now()
        answer = await self.fake.answer(
            Call(
                method=request.method,
                path=request.url.path,
                query=request.url.query.decode(),
                headers={name.lower(): value for name, value in request.headers.items()},
                body=body,
            )
        )
        await self._kill_now()
        if answer is None:
            raise httpx.RemoteProtocolError("the reply was lost")
        return httpx.Response(answer.status, headers=dict(answer.headers), content=answer.body)

    async def _kill_now(self) -> None:
        if self.scope is not None and self.kill():
            self.scope.cancel()
        await trio.lowlevel.checkpoint()


@attrs.define
class RigClock:
    """Stripe's virtual time, and the run's on top of it until Stripe's moves on."""

    stripe: VirtualClock
    _seen_s: int = 0
    _base_s: float = 0.0
    _last_ms: int = 0

    def now_ms(self) -> int:
        """Return the instant in epoch milliseconds; it never goes back."""
        if self.stripe.now_s != self._seen_s:
            self._seen_s, self._base_s = self.stripe.now_s, trio.current_time()
        drift_ms = int((trio.current_time() - self._base_s) * SECOND_MS)
        self._last_ms = max(self._last_ms, self._seen_s * SECOND_MS + drift_ms)
        return self._last_ms


def spread(chance: random.Random) -> Iterator[float]:
    """Yield jitter."""
    while True:
        yield chance.random()


@attrs.define(kw_only=True, eq=False)
class Rig:
    """What a test drives."""

    fake: FakeStripe
    wire: Wire
    clock: RigClock
    database: Database
    organizations: Organizations
    ledger: Ledger
    store: MemoryStore
    inbox: MemoryStripe
    follower: StripeActor
    payments: StripePayments
    billing: StripeBilling
    kept: MemoryCharges
    policy: ChargePolicy
    charges: Charges
    told: list[str] = attrs.Factory(list)
    """Events that Stripe has not delivered yet."""
    is_deaf: bool = False
    """Webhooks are lost while this is on."""
    post: Callable[[list[str]], list[str]] = lambda told: told
    """What becomes of webhooks on their way: which arrive, in which order, how often."""
    kills: int = 0

    def call(self, method: str, path: str, **params: object) -> Any:
        """Make a request as somebody else does, past all faults; `a__b` is `a[b]`."""
        form = {}
        for name, value in params.items():
            first, *rest = name.split("__")
            form[first + "".join(f"[{part}]" for part in rest)] = value
        answer = self.fake.api.answer(
            Call(
                method=method,
                path=path,
                query="",
                headers={"authorization": "Bearer sk_test_x"},
                body=urlencode(form).encode(),
            )
        )
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    def make_price(self, tier: str, cents: int, *, interval: str = "month") -> str:
        """Create a price of a tier at Stripe and return its id."""
        product = self.call("POST", "/v1/products", name=f"meterd {tier}")["id"]
        made = self.call(
            "POST",
            "/v1/prices",
            product=product,
            currency="usd",
            unit_amount=cents,
            recurring__interval=interval,
            metadata__meterd_tier=tier,
        )
        return str(made["id"])

    def subscribe(self, organization_id: str, price: str, customer: str | None = None) -> Any:
        """Subscribe an organization to a price, as a new customer unless one is given."""
        customer = customer or self.call("POST", "/v1/customers", email="a@example.com")["id"]
        return self.call(
            "POST",
            "/v1/subscriptions",
            customer=customer,
            items__0__price=price,
            metadata__organization_id=organization_id,
        )

    async def create(
        self,
        organization_id: str,
        plan: Tier = Tier.FREE,
        contract: Contract = NO_CONTRACT,
        *,
        customer_id: str | None = None,
    ) -> None:
        """Create an organization in the store."""
        catalogue = self.organizations.rules.catalogue
        now_ms = self.clock.now_ms()
        new = NewOrganization(
            organization_id=organization_id,
            profile=Profile(
                name=organization_id, created_at_ms=now_ms, stripe_customer_id=customer_id
            ),
            terms=Terms(
                seq=1,
                effective_at_ms=now_ms,
                plan=plan,
                contract=contract,
                trialing=False,
                limits=resolve(catalogue, plan, contract),
                reason="created",
            ),
            period=calendar_period(now_ms, terms_seq=1),
            created_by="test",
            reason="test",
        )
        assert await self.store.create_organization(new)

    async def use(self, organization_id: str, minutes: int, *, period: str | None = None) -> bool:
        """Book agent time, negative for a credit; False when it was refused."""
        command = Adjust(audited=AUDITED, agent_ms=minutes * MINUTE_MS, label=period)
        answer = await self.organizations.ask(organization_id, command)
        await self.organizations.durable(organization_id, answer.seq)
        return isinstance(answer.outcome, Adjusted)

    async def link(self, organization_id: str, customer_id: str | None) -> None:
        """Let an operator link an organization to a customer, or to none."""
        await self.store.claim_customer(organization_id, customer_id)
        command = ChangeOrganization(audited=AUDITED, stripe_customer_id=customer_id)
        answer = await self.organizations.ask(organization_id, command)
        await self.organizations.durable(organization_id, answer.seq)

    async def set_plan(self, organization_id: str, plan: Tier) -> None:
        """Let an operator change an organization's plan."""
        command = ChangeOrganization(audited=AUDITED, plan=plan)
        answer = await self.organizations.ask(organization_id, command)
        assert answer.outcome == Done()
        await self.organizations.durable(organization_id, answer.seq)

    async def hear(self) -> None:
        """Let Stripe deliver its events, and the inbox be worked off."""
        told, self.told = self.told, []
        if self.is_deaf:
            return
        for payload in self.post(told):
            event = read_event(payload)
            assert event is not None
            await self.inbox.keep_event(event, at_ms=self.clock.now_ms())
        for _ in range(10_000):
            if all(kept.state != "pending" for kept in self.inbox.events.values()):
                return
            self.follower.kick()
            await trio.sleep(1)
        raise AssertionError("the inbox is not worked off")

    async def work(self, *, rounds: int = 100) -> None:
        """Charge and push until nothing is due; who is killed begins again as another."""
        for _ in range(rounds):
            with trio.CancelScope() as scope:
                self.wire.scope = scope
                moved = await self.charges.work()
            self.wire.scope = None
            if scope.cancelled_caught:
                self.kills += 1
                self.restart()
                await trio.sleep(3)
            elif self._due():
                await trio.sleep(1 if moved else 3)
            else:
                return

    def _due(self) -> bool:
        soon_ms = self.clock.now_ms() + 10 * MINUTE_MS
        return any(
            charge.state.value in {"new", "pushing"}
            or (charge.state.value == "pushed" and charge.next_attempt_at_ms < soon_ms)
            for charge in self.kept.kept.values()
        )

    def restart(self) -> None:
        """Forget all that only the charges actor knows."""
        self.charges = Charges(
            self.kept,
            self.billing,
            self.organizations,
            clock=self.clock,
            jitter=spread(random.Random(4)),
            policy=self.policy,
        )

    async def advance(self, days: float, *, works: bool = True) -> None:
        """Let time pass, timer by timer; after each meterd hears of it and works."""
        world, to_s = self.fake.world, self.fake.clock.now_s + int(days * DAY_S)
        while True:
            due_s = world.next_due_s()
            is_last = due_s is None or due_s > to_s
            world.clock.jump_to(to_s if is_last or due_s is None else due_s)
            while world.run_due():
                pass
            if works:
                await self.hear()
                await self.work()
            if is_last:
                return

    def items(self) -> list[Any]:
        """Return the invoice items that are ours."""
        return [
            each for each in self.fake.objects("invoiceitem") if "meterd_charge" in each["metadata"]
        ]


def reconciliation_of(rig: Rig) -> StripeReconciliation:
    """Return a reconciliation of a rig."""
    return StripeReconciliation(
        rig.kept,
        rig.inbox,
        rig.billing,
        rig.charges,
        rig.follower,
        rig.organizations,
        clock=rig.clock,
        ids=IdSource(rig.clock.now_ms, random.Random(1)),
    )


@asynccontextmanager
async def open_rig(
    *,
    seed: int = 1,
    catalogue: Catalogue = CATALOGUE,
    policy: ChargePolicy | None = None,
) -> AsyncIterator[Rig]:
    """Give a rig at 2026-01-01; needs a clock that jumps."""
    chance = random.Random(seed)
    world = World(clock=VirtualClock(start_s=START_S), seed=seed)
    fake = FakeStripe(world, Faults(chance=chance, timeout_s=25), chance)
    wire = Wire(fake)
    http_client = stripe.HTTPXClient(timeout=20, allow_sync_methods=False)
    http_client._client_async = httpx.AsyncClient(transport=wire)
    client = stripe.StripeClient("sk_test_x", http_client=http_client, max_network_retries=2)
    payments = StripePayments(
        client, livemode=False, jitter=spread(chance), requests_per_s=1_000_000
    )
    clock = RigClock(fake.clock)
    database = Database()
    store = MemoryStore(database, epoch=database.take(), clock=clock)
    ids = IdSource(clock.now_ms, chance)
    ledger = Ledger(store, clock=clock, ids=ids, jitter=spread(chance), policy=FlushPolicy())
    cells = Cells(
        store,
        ledger,
        rules=Rules(catalogue=catalogue),
        clock=clock,
        ids=ids,
        jitter=spread(chance),
        policy=ActorPolicy(),
        decide=decide,
    )
    organizations = Organizations(cells)

    def organization_with(customer_id: str | None, named: str | None) -> str | None:
        for key, record in database.organizations.items():
            if customer_id is not None and record.profile.stripe_customer_id == customer_id:
                return key
        return named if named in database.organizations else None

    inbox = MemoryStripe(organization_with)
    follower = StripeActor(
        inbox,
        payments,
        organizations,
        store,
        clock=clock,
        jitter=spread(chance),
        policy=StripePolicy(poll_ms=400 * DAY_MS),
    )
    kept = MemoryCharges(database, store.epoch)
    used = policy or ChargePolicy()
    billing = StripeBilling(payments)
    rig = Rig(
        fake=fake, wire=wire, clock=clock, database=database, organizations=organizations,
        ledger=ledger, store=store, inbox=inbox, follower=follower, payments=payments,
        billing=billing, kept=kept, policy=used,
        charges=Charges(
            kept, billing, organizations, clock=clock, jitter=spread(chance), policy=used
        ),
    )  # fmt: skip
    world.on_event.append(lambda event: rig.told.append(json.dumps(event)))
    async with trio.open_nursery() as nursery:
        # No timers: every message lets time pass first, and months would be slept through.
        for run in (ledger.run, organizations.cells.activation.run, follower.run):
            nursery.start_soon(run)
        yield rig
        nursery.cancel_scope.cancel()
    await http_client.close_async()  # type: ignore[no-untyped-call]
