"""A realistic history at a fake Stripe, and a meterd in memory that hears of it in any order.

The history is made once by the fake's own billing code; `StripeAt` then shows any moment of it.
"""

from __future__ import annotations

import bisect
import copy
import json
import random
from collections.abc import Collection, Iterator, Sequence
from urllib.parse import urlencode

import attrs
import trio

from meterd.actors.cells import ActorPolicy, Cells
from meterd.actors.ledger import FlushPolicy, Ledger
from meterd.actors.organizations import Organizations
from meterd.actors.stripe import StripeActor, StripePolicy
from meterd.adapters.ids import IdSource
from meterd.adapters.memory.store import Database, MemoryStore
from meterd.adapters.memory.stripe import MemoryStripe
from meterd.core.commands import Adjust, Adjusted, Audited
from meterd.core.decide import decide
from meterd.core.organization import Profile
from meterd.core.period import calendar_period
from meterd.core.plan import NO_CONTRACT, Terms, Tier, resolve
from meterd.core.stripe_objects import read_event
from meterd.core.units import DAY_MS, MINUTE_MS, SECOND_MS
from meterd.ports.directory import NewOrganization
from meterd.ports.payments import SubscriptionReading
from meterd.testing.fake_stripe.api import Call
from meterd.testing.fake_stripe.clock import VirtualClock
from meterd.testing.fake_stripe.faults import Faults
from meterd.testing.fake_stripe.handle import FakeStripe
from meterd.testing.fake_stripe.world import World
from tests.organizations import CATALOGUE, make_rules


Json = dict[str, object]
DAY_S = 86_400
START_S = 1_767_225_600
"""2026-01-01T00:00:00Z."""

ORGANIZATION_ID = "org_1"

USED_DAYS = range(3, 165, 9)
"""Days after the start on which the organization uses a few minutes, whatever it has heard."""

USED_MS = 5 * MINUTE_MS


@attrs.define
class History:
    """Events with their times, and the objects at every moment."""

    events: list[tuple[int, str]] = attrs.Factory(list)
    """Epoch second and payload."""
    moments_s: list[int] = attrs.Factory(list)
    objects: list[dict[str, dict[str, Json]]] = attrs.Factory(list)
    """Kind → id → object, as of the moment with the same index and until the next one."""
    end_s: int = 0

    def at(self, now_s: int) -> dict[str, dict[str, Json]]:
        """Return all objects as they are at an instant."""
        index = bisect.bisect_right(self.moments_s, now_s) - 1
        return self.objects[index] if index >= 0 else {}


class Account:
    """Drives the fake without a network and writes down what happens."""

    def __init__(self) -> None:
        world = World(clock=VirtualClock(start_s=START_S), seed=5)
        self.history = History()
        self.fake = FakeStripe(world, Faults(chance=random.Random(1)), random.Random(2))
        world.on_event.append(self._heard)

    def _heard(self, event: Json) -> None:
        self.history.events.append((self.fake.clock.now_s, json.dumps(event)))

    def call(self, method: str, path: str, **params: object) -> Json:
        """Make an API request and remember what it led to."""
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
        assert answer is not None
        assert answer.status == 200, answer.body
        self._remember()
        found: Json = json.loads(answer.body)
        return found

    def pass_days(self, days: float) -> None:
        """Let time pass, timer by timer."""
        world, to_s = self.fake.world, self.fake.clock.now_s + int(days * DAY_S)
        while (due_s := world.next_due_s()) is not None and due_s <= to_s:
            world.clock.jump_to(due_s)
            while world.run_due():
                pass
            self._remember()
        world.clock.jump_to(to_s)

    def _remember(self) -> None:
        tables = self.fake.world.tables
        now = {kind: copy.deepcopy(tables.get(kind, {})) for kind in ("subscription", "invoice")}
        history, now_s = self.history, self.fake.clock.now_s
        if history.moments_s and history.moments_s[-1] == now_s:
            history.objects[-1] = now
        else:
            history.moments_s.append(now_s)
            history.objects.append(now)


def make_history() -> History:
    """Create, upgrade with a proration invoice, renew, fail, recover, cancel, re-subscribe."""
    account = Account()
    product = account.call("POST", "/v1/products", name="meterd")["id"]
    prices = {
        tier: account.call(
            "POST",
            "/v1/prices",
            product=product,
            currency="usd",
            unit_amount=cents,
            recurring__interval="month",
            metadata__meterd_tier=tier,
        )["id"]
        for tier, cents in (("starter", 4_900), ("pro", 14_900))
    }
    customer = account.call("POST", "/v1/customers", email="ann@example.com")["id"]
    account.pass_days(9.4)
    first = _subscribe(account, customer, prices["starter"])  # 10 January
    account.pass_days(12)
    account.call(
        "POST",
        f"/v1/subscriptions/{first['id']}",
        items__0__id=first["items"]["data"][0]["id"],  # type: ignore[index]
        items__0__price=prices["pro"],
        proration_behavior="always_invoice",
    )
    account.pass_days(25)  # renewed on 10 February
    account.fake.set_payments(str(customer), "succeed", "fail", "fail")
    account.pass_days(20)  # failed on 10 March, failed again on 13 March
    account.pass_days(15)  # recovered on 18 March
    account.pass_days(20)  # renewed on 10 April
    account.call("DELETE", f"/v1/subscriptions/{first['id']}")
    account.pass_days(4)
    _subscribe(account, customer, prices["starter"])  # in the same month
    account.pass_days(63.5)  # renewed twice; the last renewal is hours old
    account.history.end_s = account.fake.clock.now_s
    return account.history


def _subscribe(account: Account, customer: object, price: object) -> Json:
    return account.call(
        "POST",
        "/v1/subscriptions",
        customer=customer,
        items__0__price=price,
        metadata__organization_id=ORGANIZATION_ID,
    )


@attrs.define
class WorldClock:
    """Wall time that follows the run's virtual clock from an instant of the history."""

    start_s: int
    base_s: float = attrs.Factory(trio.current_time)

    def now_ms(self) -> int:
        """Return the instant in epoch milliseconds."""
        return self.start_s * SECOND_MS + round((trio.current_time() - self.base_s) * 1_000)


@attrs.define
class StripeAt:
    """Stripe's objects as they are at the clock's instant: a versioned object store."""

    history: History
    clock: WorldClock
    livemode: bool = False
    reads: int = 0

    async def subscription(
        self,
        subscription_id: str,
        *,
        invoice_ids: Collection[str] = (),  # noqa: ARG002  # all are shown
    ) -> SubscriptionReading | None:
        """Return what Stripe would show now."""
        await trio.lowlevel.checkpoint()
        self.reads += 1
        objects = self.history.at(self.clock.now_ms() // SECOND_MS)
        found = objects.get("subscription", {}).get(subscription_id)
        if found is None:
            return None
        invoices = [
            invoice
            for invoice in objects["invoice"].values()
            if invoice["parent"]["subscription_details"]["subscription"] == subscription_id  # type: ignore[index]
        ]
        return SubscriptionReading(subscription=found, invoices=tuple(invoices))

    async def subscriptions_of(self, customer_id: str) -> Sequence[str]:
        """Return what the customer has now."""
        await trio.lowlevel.checkpoint()
        objects = self.history.at(self.clock.now_ms() // SECOND_MS)
        found = objects.get("subscription", {}).items()
        return [key for key, each in found if each["customer"] == customer_id]


@attrs.define
class Meterd:
    """One organization's meterd in memory."""

    clock: WorldClock
    database: Database
    inbox: MemoryStripe
    organizations: Organizations
    actor: StripeActor


def halves() -> Iterator[float]:
    """Yield jitter without chance."""
    while True:
        yield 0.5


async def open_meterd(
    nursery: trio.Nursery, history: History, *, has_key: bool, poll_ms: int = 40 * DAY_MS
) -> Meterd:
    """Start a meterd at the beginning of a history, with one organization on Free."""
    clock = WorldClock(START_S)
    database = Database()
    store = MemoryStore(database, epoch=database.take(), clock=clock)
    limits = resolve(CATALOGUE, Tier.FREE, NO_CONTRACT)
    await store.create_organization(
        NewOrganization(
            organization_id=ORGANIZATION_ID,
            profile=Profile(name="One", created_at_ms=clock.now_ms()),
            terms=Terms(
                seq=1,
                effective_at_ms=clock.now_ms(),
                plan=Tier.FREE,
                contract=NO_CONTRACT,
                trialing=False,
                limits=limits,
                reason="created",
            ),
            period=calendar_period(clock.now_ms(), terms_seq=1),
            created_by="test",
            reason="test",
        )
    )
    ids = IdSource(clock.now_ms, random.Random(3))
    ledger = Ledger(store, clock=clock, ids=ids, jitter=halves(), policy=FlushPolicy())
    cells = Cells(
        store,
        ledger,
        rules=make_rules(),
        clock=clock,
        ids=ids,
        jitter=halves(),
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
    actor = StripeActor(
        inbox,
        StripeAt(history, clock) if has_key else None,
        organizations,
        store,
        clock=clock,
        jitter=halves(),
        policy=StripePolicy(poll_ms=poll_ms),
    )
    # No timers: every message lets time pass first, and months would be slept through in naps.
    for run in (ledger.run, organizations.cells.activation.run, actor.run):
        nursery.start_soon(run)
    return Meterd(
        clock=clock, database=database, inbox=inbox, organizations=organizations, actor=actor
    )


async def deliver(meterd: Meterd, payload: str) -> None:
    """Put an event into the inbox as the webhook does."""
    event = read_event(payload)
    assert event is not None
    if await meterd.inbox.keep_event(event, at_ms=meterd.clock.now_ms()):
        meterd.actor.kick()


async def use(meterd: Meterd) -> None:
    """Book agent time; no plan of the history has too little for it."""
    command = Adjust(audited=Audited(actor="key_1", reason="used"), agent_ms=USED_MS)
    answer = await meterd.organizations.ask(ORGANIZATION_ID, command)
    assert isinstance(answer.outcome, Adjusted), answer
    await meterd.organizations.durable(ORGANIZATION_ID, answer.seq)


async def live_through(
    history: History, deliveries: list[tuple[int, str]], *, has_key: bool
) -> Meterd:
    """Live through a history, hearing of it at these times, and stop when all is quiet."""
    used_s = [START_S + day * DAY_S for day in USED_DAYS]
    uses = [(at_s, "") for at_s in used_s if at_s <= history.end_s]
    async with trio.open_nursery() as nursery:
        meterd = await open_meterd(nursery, history, has_key=has_key)
        for at_s, payload in sorted([*deliveries, *uses]):
            await trio.sleep_until(meterd.clock.base_s + at_s - START_S)
            if payload:
                await deliver(meterd, payload)
            else:
                await use(meterd)
        await trio.sleep_until(meterd.clock.base_s + history.end_s - START_S)
        for _ in range(1_000):
            if all(kept.state != "pending" for kept in meterd.inbox.events.values()):
                break
            meterd.actor.kick()
            await trio.sleep(1)
        await meterd.organizations.view(ORGANIZATION_ID)
        nursery.cancel_scope.cancel()
    return meterd


async def standing_of(meterd: Meterd) -> dict[str, object]:
    """Return what an organization's state says of its subscription, and all that it has used.

    Which period a minute is in may depend on when a start was heard of; that it is in one may not.
    """
    cell = meterd.organizations.cells.get(ORGANIZATION_ID)
    assert cell is not None
    assert cell.state is not None
    state, profile = cell.state, cell.state.profile
    record = meterd.database.organizations[ORGANIZATION_ID]
    return {
        "plan": state.terms.plan,
        "trialing": state.terms.trialing,
        "limits": state.terms.limits,
        "customer": profile.stripe_customer_id,
        "holds": profile.holds,
        "past_due_since": profile.past_due_since_ms,
        "cycle": profile.cycle,
        "alerts": profile.billing_alerts,
        "period": (state.period.start_ms, state.period.end_ms),
        "used_ever": sum(period.used_ms for _, period in record.periods.values()),
        "in_rows": sum(row.quantity_ms for row in record.rows.values()),
        "outcomes": {kept.outcome for kept in meterd.inbox.events.values()} - {"unknown_type"},
    }
