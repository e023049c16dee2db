# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from meterd.actors.stripe import AWAY_AFTER, StripeActor, StripePolicy
from meterd.actors.supervisor import Service
from meterd.adapters.memory.stripe import Kept, MemoryStripe
from meterd.core.plan import Tier
from meterd.core.stripe_objects import read_event
from meterd.core.subscription import Invoice
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from meterd.errors import (
    OwnershipLostError,
    PaymentsRejectedError,
    PaymentsUnavailableError,
    StoreUnavailableError,
)
from meterd.ports.payments import SubscriptionReading
from tests.make import NOW_MS
from tests.organizations import make_change
from tests.unit.actors.kernel import Kernel, running_kernel


POLICY = StripePolicy(poll_ms=MINUTE_MS, patience_ms=2 * DAY_MS)
START_S = NOW_MS // SECOND_MS


def make_object(status: str = "active", **fields: Any) -> dict[str, Any]:
    """Return a subscription to Pro as Stripe writes it."""
    price = {
        "id": "price_1",
        "currency": "usd",
        "recurring": {"interval": "month", "interval_count": 1},
        "metadata": {"meterd_tier": "pro"},
    }
    item = {
        "id": "si_1",
        "price": price,
        "quantity": 1,
        "current_period_start": START_S,
        "current_period_end": START_S + 28 * 86_400,
    }
    return {
        "id": "sub_1",
        "object": "subscription",
        "customer": "cus_1",
        "status": status,
        "created": START_S,
        "billing_cycle_anchor": START_S,
        "items": {"object": "list", "data": [item]},
        "metadata": {"organization_id": "org_1"},
        "livemode": False,
        **fields,
    }


def make_payload(
    event_id: str = "evt_1",
    kind: str = "customer.subscription.updated",
    *,
    found: dict[str, Any] | None = None,
    livemode: bool = False,
    **fields: str,
) -> str:
    """Return an event about a subscription."""
    return json.dumps(
        {
            **fields,
            "id": event_id,
            "object": "event",
            "type": kind,
            "created": START_S,
            "livemode": livemode,
            "data": {"object": make_object() if found is None else found},
        }
    )


@attrs.define
class Shelf:
    """Payments with one subscription on it, and the trouble a test wants."""

    found: dict[str, Any] | None = attrs.Factory(make_object)
    invoices: tuple[dict[str, Any], ...] = ()
    livemode: bool = False
    errors: list[Exception] = attrs.Factory(list)
    """Raised one by one before anything is found."""
    is_away: bool = False
    reads: list[str] = attrs.Factory(list)
    asked_invoices: list[set[str]] = attrs.Factory(list)
    gate: trio.Event | None = None

    async def subscription(
        self, subscription_id: str, *, invoice_ids: Collection[str] = ()
    ) -> SubscriptionReading | None:
        """Return what is on the shelf."""
        self.reads.append(subscription_id)
        self.asked_invoices.append(set(invoice_ids))
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        if self.is_away:
            raise PaymentsUnavailableError("read a subscription", "away")
        if self.errors:
            raise self.errors.pop(0)
        found = self.found
        if found is not None:
            found = {**found, "id": subscription_id}
        if found is None:
            return None
        return SubscriptionReading(subscription=found, invoices=self.invoices)

    async def subscriptions_of(self, customer_id: str) -> Sequence[str]:
        """Return the subscription on the shelf, if it is this customer's."""
        await trio.lowlevel.checkpoint()
        if self.is_away:
            raise PaymentsUnavailableError("list subscriptions", "away")
        is_theirs = self.found is not None and self.found["customer"] == customer_id
        return ["sub_1"] if is_theirs else []


@attrs.define(eq=False)
class Inbox(MemoryStripe):
    """The inbox in memory, away or lost when a test says so."""

    is_away: bool = False
    settlements: int = 0

    async def settle(self, settlement: Any) -> None:
        """Settle, unless away."""
        if self.is_away:
            raise StoreUnavailableError("settle", "away")
        await MemoryStripe.settle(self, settlement)
        self.settlements += 1


@attrs.define
class Setup:
    """A Stripe actor on a running kernel."""

    kernel: Kernel
    inbox: Inbox
    shelf: Shelf
    actor: StripeActor
    heard: list[tuple[str, Any]]

    async def deliver(self, payload: str) -> None:
        """Put an event into the inbox, as the webhook does."""
        event = read_event(payload)
        assert event is not None
        await self.inbox.keep_event(event, at_ms=self.kernel.clock.now_ms())
        self.actor.kick()

    def kept(self, event_id: str = "evt_1") -> Kept:
        """Return an event of the inbox."""
        return self.inbox.events[event_id]

    async def plan(self) -> Tier:
        """Return the organization's plan."""
        return (await self.kernel.organizations.snapshot("org_1")).terms.plan


def halves() -> Iterator[float]:
    """Yield jitter without chance."""
    while True:
        yield 0.5


@pytest.fixture
async def setup(nursery: trio.Nursery) -> AsyncIterator[Setup]:
    """Start an actor that reads, for an organization on Free without a customer."""
    async with running_kernel(is_created=False) as kernel:
        store = kernel.store
        await kernel.create(plan=Tier.FREE)

        def organization_with(customer_id: str | None, named: str | None) -> str | None:
            records = store.database.organizations
            for key, record in records.items():
                if customer_id is not None and record.profile.stripe_customer_id == customer_id:
                    return key
            return named if named in records else None

        inbox, shelf, heard = Inbox(organization_with), Shelf(), []
        actor = StripeActor(
            inbox,
            shelf,
            kernel.organizations,
            store,
            clock=kernel.clock,
            jitter=halves(),
            policy=POLICY,
            on_invoices=lambda key, invoices: heard.append((key, invoices)),
        )
        nursery.start_soon(actor.run)
        yield Setup(kernel, inbox, shelf, actor, heard)
        nursery.cancel_scope.cancel()


async def test_event_is_done_when_what_it_led_to_is_durable(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """The plan is on, in the store too, and the object is remembered as it was read."""
    await setup.deliver(make_payload())
    await trio.sleep(1)

    assert (setup.kept().state, setup.kept().outcome) == ("done", "applied")
    record = setup.kernel.store.database.organizations["org_1"]
    assert record.profile.stripe_customer_id == "cus_1"
    assert record.profile.cycle is not None
    assert await setup.plan() is Tier.PRO
    assert setup.inbox.subscriptions["sub_1"][0] == "org_1"
    assert setup.actor.outcomes == {"applied": 1}


async def test_all_events_of_a_subscription_cost_one_reading(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """A day's backlog is worked off with one look at each subscription."""
    setup.shelf.gate = trio.Event()
    for number in range(50):
        await setup.deliver(make_payload(f"evt_{number}"))
        await trio.sleep(0.01)
    setup.shelf.gate.set()
    await trio.sleep(1)

    assert {kept.state for kept in setup.inbox.events.values()} == {"done"}
    assert len(setup.shelf.reads) == 2, "one before the gate opened, one for all that came since"


@pytest.mark.parametrize(
    ("payload", "outcome"),
    [
        (make_payload(kind="customer.created", found={"id": "cus_1", "object": "customer"}), None),
        (make_payload(livemode=True), "wrong_livemode"),
        (make_payload(account="acct_connected"), "other_account"),
        (
            make_payload(
                kind="invoice.paid", found={"id": "in_1", "object": "invoice", "customer": "c"}
            ),
            "no_subscription",
        ),
    ],
)
async def test_event_that_is_none_of_our_business_is_done_and_counted(
    setup: Setup, autojump_clock: MockClock, payload: str, outcome: str | None
) -> None:
    """Nothing is read for it, nothing waits for it."""
    await setup.deliver(payload)
    await trio.sleep(1)

    assert (setup.kept().state, setup.kept().outcome) == ("done", outcome or "unknown_type")
    assert setup.shelf.reads == []


async def test_subscription_of_a_stranger_is_done_and_counted(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """Neither its customer nor its metadata names an organization of ours."""
    setup.shelf.found = make_object(metadata={"organization_id": "../org_2"}, customer="cus_9")
    await setup.deliver(make_payload())
    await trio.sleep(1)

    assert (setup.kept().state, setup.kept().outcome) == ("done", "unknown_customer")


async def test_what_came_before_a_customer_was_linked_is_worked_off_when_it_is(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """It subscribed first and was made known here later: it has paid, so it gets its plan."""
    setup.shelf.found = make_object(metadata={})
    await setup.deliver(make_payload())
    await trio.sleep(1)
    before = (setup.kept().outcome, await setup.plan())
    await setup.kernel.store.claim_customer("org_1", "cus_1")
    await setup.kernel.organizations.ask("org_1", make_change(stripe_customer_id="cus_1"))
    await setup.actor.customer_linked("cus_1")
    await trio.sleep(1)

    assert before == ("unknown_customer", Tier.FREE)
    assert (setup.kept().outcome, await setup.plan()) == ("applied", Tier.PRO)


async def test_a_customer_that_is_linked_is_followed_although_nothing_was_ever_heard_of_it(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """It has paid for a year before meterd came; Stripe is away at first, and asked again."""
    setup.shelf.found = make_object(metadata={})
    setup.shelf.is_away = True
    await setup.kernel.store.claim_customer("org_1", "cus_1")
    await setup.kernel.organizations.ask("org_1", make_change(stripe_customer_id="cus_1"))
    await setup.actor.customer_linked("cus_1")
    await trio.sleep(1)
    before = await setup.plan()
    setup.shelf.is_away = False
    await trio.sleep(2 * MINUTE_MS / SECOND_MS)
    followed = await setup.plan()
    await setup.actor.customer_linked("cus_9")
    await trio.sleep(1)

    assert (before, followed) == (Tier.FREE, Tier.PRO)
    assert {kept.state for kept in setup.inbox.events.values()} == {"done"}


async def test_a_customers_discount_is_news_of_its_subscriptions_and_a_strangers_is_not(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """The event names no subscription; other customers of the account are not looked up."""
    await setup.kernel.store.claim_customer("org_1", "cus_1")
    await setup.kernel.organizations.ask("org_1", make_change(stripe_customer_id="cus_1"))
    theirs = {"id": "di_1", "object": "discount", "customer": "cus_1", "subscription": None}
    kind = "customer.discount.created"
    await setup.deliver(make_payload("evt_1", kind, found=theirs))
    await setup.deliver(make_payload("evt_2", kind, found={**theirs, "customer": "cus_9"}))
    await setup.deliver(make_payload("evt_3", kind, found=theirs, livemode=True))
    await trio.sleep(1)

    outcomes = {key: kept.outcome for key, kept in setup.inbox.events.items()}
    assert outcomes == {
        "evt_1": "applied",
        "evt_1_sub_1": "applied",
        "evt_2": "unknown_customer",
        "evt_3": "wrong_livemode",
    }
    assert setup.shelf.reads == ["sub_1"]


async def test_object_that_is_not_there_yet_is_asked_for_again(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """The webhook of our own create can be quicker than Stripe's read replicas."""
    setup.shelf.found = None
    await setup.deliver(make_payload())
    await trio.sleep(1)
    waiting = (setup.kept().state, setup.kept().attempts)
    setup.shelf.found = make_object()
    await trio.sleep(2 * MINUTE_MS / SECOND_MS)

    assert waiting == ("pending", 1)
    assert setup.kept().state == "done"
    assert await setup.plan() is Tier.PRO


async def test_event_that_cannot_succeed_is_dead_after_its_attempts_and_may_be_retried(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """A person sees it with its error, and says when to try again."""
    setup.shelf.errors = [PaymentsRejectedError("read", "no\0pe")] * POLICY.attempts_max
    await setup.deliver(make_payload())
    await trio.sleep(DAY_MS / SECOND_MS)
    dead = attrs.evolve(setup.kept())
    retried = await setup.actor.retry("evt_1")
    missing = await setup.actor.retry("evt_none")
    await trio.sleep(1)

    assert (dead.state, dead.attempts) == ("dead", POLICY.attempts_max)
    assert dead.last_error == "PaymentsRejectedError: Stripe failed to read: nope"
    assert setup.actor.outcomes["dead"] == 1
    assert (retried, missing, setup.kept().state) == (True, False, "done")


async def test_crash_while_working_off_costs_the_event_an_attempt_not_the_actor(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """A bug that one object triggers must not stop everybody's billing."""
    setup.shelf.errors = [ZeroDivisionError("bug")]
    await setup.deliver(make_payload())
    await setup.deliver(make_payload("evt_2", found=make_object(id="sub_2")))
    await trio.sleep(0.5)
    first = (setup.kept("evt_1").state, setup.kept("evt_2").state)
    await trio.sleep(2 * MINUTE_MS / SECOND_MS)

    assert sorted(first) == ["done", "pending"]
    assert setup.kept("evt_1").state == setup.kept("evt_2").state == "done"


async def test_stripe_away_for_25_hours_is_caught_up_with(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """No event dies of an outage, Stripe is asked now and then, and everything follows."""
    setup.shelf.is_away = True
    for number in range(40):
        await setup.deliver(make_payload(f"evt_{number}", found=make_object(id=f"sub_{number}")))
    await trio.sleep(25 * HOUR_MS / SECOND_MS)
    asked = len(setup.shelf.reads)
    is_away = setup.actor.is_away
    setup.shelf.is_away = False
    await trio.sleep(10 * MINUTE_MS / SECOND_MS)

    assert is_away
    assert asked < 25 * 60 + 100, "about once a minute"
    assert {kept.state for kept in setup.inbox.events.values()} == {"done"}
    assert not setup.actor.is_away
    assert await setup.plan() is Tier.PRO


async def test_an_outage_takes_no_attempts_from_what_is_not_there_yet(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """After a day of failures Stripe is back and shows the object a little later: followed."""
    setup.shelf.is_away = True
    await setup.deliver(make_payload())
    await trio.sleep(25 * HOUR_MS / SECOND_MS)
    failed = setup.kept().attempts
    setup.shelf.found, setup.shelf.is_away = None, False
    await trio.sleep(5 * MINUTE_MS / SECOND_MS)
    waiting = setup.kept().state
    setup.shelf.found = make_object()
    await trio.sleep(10 * MINUTE_MS / SECOND_MS)

    assert failed > POLICY.attempts_max
    assert (waiting, setup.kept().state) == ("pending", "done")


async def test_an_old_event_that_is_retried_has_all_its_attempts(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """It was received long ago: one hiccup of Stripe's must not end it again."""
    setup.shelf.found = None
    await setup.deliver(make_payload())
    await trio.sleep(3 * DAY_MS / SECOND_MS)
    before = setup.kept().state
    setup.shelf.found = make_object()
    setup.shelf.errors = [PaymentsUnavailableError("read", "500")]
    await setup.actor.retry("evt_1")
    await trio.sleep(5 * MINUTE_MS / SECOND_MS)

    assert (before, setup.kept().state) == ("dead", "done")


async def test_what_waits_for_somebody_else_for_days_is_dead_in_the_end(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """Nothing is tried for ever: after its patience an event is for a person."""
    setup.shelf.is_away = True
    await setup.deliver(make_payload())
    await trio.sleep(3 * DAY_MS / SECOND_MS)

    assert setup.kept().state == "dead"


async def test_one_subscription_that_always_fails_does_not_delay_the_others(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """Below the threshold of an outage everybody else goes on."""
    setup.shelf.errors = [PaymentsUnavailableError("read", "500")] * (AWAY_AFTER - 1)
    await setup.deliver(make_payload())
    await trio.sleep(0.1)
    await setup.deliver(make_payload("evt_2", found=make_object(id="sub_2")))
    await trio.sleep(1.5)

    assert setup.kept("evt_2").state == "pending"
    await trio.sleep(2 * MINUTE_MS / SECOND_MS)
    assert setup.kept("evt_1").state == setup.kept("evt_2").state == "done"


async def test_store_that_is_away_costs_no_event_anything(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """The events are still pending when it is back; doing it twice changes nothing."""
    setup.inbox.is_away = True
    await setup.deliver(make_payload())
    await trio.sleep(5)
    followed = await setup.plan()
    setup.inbox.is_away = False
    await trio.sleep(10 * MINUTE_MS / SECOND_MS)

    assert followed is Tier.PRO
    assert setup.kept().state == "done"
    assert len(setup.kernel.store.database.audits) == 2, "created, and followed once"


async def test_end_of_a_subscription_is_news_once(setup: Setup, autojump_clock: MockClock) -> None:
    """An operator's plan after the end survives every later event of the old subscription."""
    await setup.deliver(make_payload())
    await trio.sleep(1)
    setup.shelf.found = make_object("canceled")
    await setup.deliver(make_payload("evt_2"))
    await trio.sleep(1)
    ended = await setup.plan()
    await setup.kernel.organizations.ask("org_1", make_change(plan=Tier.ENTERPRISE))
    await setup.deliver(make_payload("evt_3"))
    await trio.sleep(1)

    assert ended is Tier.FREE
    assert setup.kept("evt_3").state == "done"
    assert await setup.plan() is Tier.ENTERPRISE


async def test_invoices_not_settled_when_last_seen_are_asked_for_by_name(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """An old invoice that was paid meanwhile is in no list of newest or open ones."""
    invoice = {
        "id": "in_1",
        "object": "invoice",
        "customer": "cus_1",
        "status": "open",
        "billing_reason": "subscription_cycle",
        "attempt_count": 1,
        "created": START_S,
        "parent": {"subscription_details": {"subscription": "sub_1"}},
    }
    setup.shelf.found, setup.shelf.invoices = make_object("past_due"), (invoice,)
    await setup.deliver(make_payload("evt_1", "invoice.payment_failed", found=invoice))
    await trio.sleep(1)
    await setup.deliver(make_payload("evt_2"))
    await trio.sleep(1)
    snapshot = await setup.kernel.organizations.snapshot("org_1")

    assert setup.shelf.asked_invoices == [{"in_1"}, {"in_1"}]
    assert snapshot.profile.past_due_since_ms == START_S * SECOND_MS
    key, invoices = setup.heard[0]
    assert key == "org_1"
    assert [type(each) for each in invoices] == [Invoice]


async def test_what_is_read_now_is_news_although_a_clock_once_ran_ahead(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """An object seen an hour from now, by a clock set right since, must not hide what follows."""
    await setup.deliver(make_payload())
    await trio.sleep(1)
    key, seen = setup.inbox.subscriptions["sub_1"]
    ahead = f"{setup.kernel.clock.now_ms() + HOUR_MS:015d}"
    setup.inbox.subscriptions["sub_1"] = (key, attrs.evolve(seen, version=ahead))
    setup.shelf.found = make_object("canceled")
    await setup.deliver(make_payload("evt_2", "customer.subscription.deleted"))
    await trio.sleep(1)

    assert setup.kept("evt_2").state == "done"
    assert await setup.plan() is Tier.FREE
    assert setup.inbox.subscriptions["sub_1"][1].version == ahead


async def test_owner_that_was_replaced_stops(setup: Setup, autojump_clock: MockClock) -> None:
    """Two processes must not work off one inbox: the service ends instead of starting again."""
    inbox = MemoryStripe(lambda _customer_id, _named: None, is_owned=lambda: False)
    actor = StripeActor(
        inbox,
        setup.shelf,
        setup.kernel.organizations,
        setup.kernel.store,
        clock=setup.kernel.clock,
        jitter=halves(),
        policy=POLICY,
    )
    service = Service("stripe", actor.run, clock=setup.kernel.clock)
    event = read_event(make_payload(kind="customer.created"))
    assert event is not None
    await inbox.keep_event(event, at_ms=setup.kernel.clock.now_ms())

    with pytest.raises(OwnershipLostError):
        await service.run()
