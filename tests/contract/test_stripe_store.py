"""The inbox and the objects as last seen, on the twin in memory and on PostgreSQL."""

from __future__ import annotations

import json

import attrs
import pytest

from meterd.adapters.memory.store import MemoryStore
from meterd.adapters.memory.stripe import MemoryStripe
from meterd.adapters.postgres.stripe import PostgresStripe
from meterd.core.stripe_objects import StripeEvent, read_event, read_invoice, read_subscription
from meterd.errors import OwnershipLostError
from meterd.ports.stripe import (
    UNKNOWN_CUSTOMER,
    SeenInvoice,
    SeenSubscription,
    Settlement,
    StripeStore,
)
from tests.contract.conftest import Owned, take_ownership
from tests.make import NOW_MS, make_new, make_profile


@pytest.fixture
async def stripe_store(owned: Owned) -> StripeStore:
    """Give an inbox beside a store with two organizations, one of them with a customer."""
    store = owned.store
    profile = make_profile(stripe_customer_id="cus_1")
    await store.create_organization(make_new("org_1", profile=profile))
    await store.create_organization(make_new("org_2"))
    if not isinstance(store, MemoryStore):
        return PostgresStripe(store.pools, epoch=store.epoch)
    database, epoch = store.database, store.epoch

    def organization_with(customer_id: str | None, named: str | None) -> str | None:
        for key, record in database.organizations.items():
            if customer_id is not None and record.profile.stripe_customer_id == customer_id:
                return key
        return named if named in database.organizations else None

    return MemoryStripe(organization_with, is_owned=lambda: database.epoch == epoch)


def make_event(event_id: str = "evt_1", subscription_id: str = "sub_1") -> StripeEvent:
    """Return an event about a subscription, with text that not every column can hold."""
    found = {
        "id": subscription_id,
        "object": "subscription",
        "customer": "cus_1",
        "description": "\0 ü \ud83d\ude00",
    }
    body = {
        "id": event_id,
        "object": "event",
        "type": "customer.subscription.updated",
        "created": NOW_MS // 1_000,
        "data": {"object": found},
    }
    event = read_event(json.dumps(body))
    assert event is not None
    return event


def seen_subscription(status: str = "active") -> SeenSubscription:
    """Return a subscription as the actor hands it over."""
    found = {"id": "sub_1", "object": "subscription", "customer": "cus_1", "status": status}
    subscription = read_subscription(found)
    assert subscription is not None
    return SeenSubscription(subscription=subscription, version="7", object_json=json.dumps(found))


def seen_invoice(
    status: str = "open", *, failed_at_ms: int | None = None, invoice_id: str = "in_1"
) -> SeenInvoice:
    """Return an invoice as the actor hands it over."""
    found = {
        "id": invoice_id,
        "object": "invoice",
        "customer": "cus_1",
        "subscription": "sub_1",
        "status": status,
    }
    invoice = read_invoice(found)
    assert invoice is not None
    return SeenInvoice(
        invoice=attrs.evolve(invoice, failed_at_ms=failed_at_ms),
        version="7",
        object_json=json.dumps(found),
    )


async def test_an_event_is_kept_once_and_comes_back_as_it_was(stripe_store: StripeStore) -> None:
    """Copies are told apart by the event's id alone; the payload stays what it was."""
    event = make_event()

    kept = [await stripe_store.keep_event(event, at_ms=NOW_MS) for _ in range(3)]
    [pending] = await stripe_store.due_events(now_ms=NOW_MS, busy=(), subjects_max=9)

    assert kept == [True, False, False]
    assert (pending.event, pending.attempts, pending.received_at_ms) == (event, 0, NOW_MS)


async def test_all_events_of_a_due_subject_come_together(stripe_store: StripeStore) -> None:
    """One reading serves them all, also those whose own next attempt is later."""
    for number, subscription_id in enumerate(("sub_1", "sub_1", "sub_2", "sub_3")):
        event = make_event(f"evt_{number}", subscription_id)
        await stripe_store.keep_event(event, at_ms=NOW_MS + number)
    await stripe_store.postpone(["evt_0"], error="later", next_attempt_at_ms=NOW_MS + 99)

    first = await stripe_store.due_events(now_ms=NOW_MS + 9, busy=(), subjects_max=1)
    others = await stripe_store.due_events(now_ms=NOW_MS + 9, busy=("sub_1",), subjects_max=9)
    none = await stripe_store.due_events(now_ms=NOW_MS, busy=(), subjects_max=9)

    assert [(each.event.id, each.attempts) for each in first] == [("evt_0", 1), ("evt_1", 0)]
    assert [each.event.id for each in others] == ["evt_2", "evt_3"]
    assert none == []


async def test_settling_remembers_objects_and_ends_events(stripe_store: StripeStore) -> None:
    """What was seen is read back whole; the first failure of an invoice stays the first."""
    await stripe_store.keep_event(make_event(), at_ms=NOW_MS)
    settlement = Settlement(
        organization_id="org_1",
        subscriptions=(seen_subscription(),),
        invoices=(seen_invoice(failed_at_ms=NOW_MS), seen_invoice("paid", invoice_id="in_2")),
        done={"evt_1": "applied"},
        at_ms=NOW_MS,
    )
    await stripe_store.settle(settlement)
    later = attrs.evolve(settlement, invoices=(seen_invoice(failed_at_ms=NOW_MS + 5),))
    await stripe_store.settle(later)
    await stripe_store.settle(attrs.evolve(settlement, invoices=(seen_invoice(),)))

    unsettled = await stripe_store.seen("org_1")
    everything = await stripe_store.seen("org_1", subscription_id="sub_1")
    [entry] = await stripe_store.inbox(state="done", after=None, limit=9)
    assert unsettled.subscriptions == {"sub_1": seen_subscription()}
    assert unsettled.invoices == {"in_1": seen_invoice(failed_at_ms=NOW_MS)}
    assert everything.invoices.keys() == {"in_1", "in_2"}
    assert await stripe_store.unsettled_invoices("sub_1") == ["in_1"]
    assert (entry.id, entry.outcome, entry.attempts) == ("evt_1", "applied", 1)
    assert await stripe_store.seen("org_2") == attrs.evolve(
        unsettled, subscriptions={}, invoices={}
    )


async def test_dead_events_wait_for_an_operator(stripe_store: StripeStore) -> None:
    """They are in no poll, in the list with their error, and pending again when retried."""
    await stripe_store.keep_event(make_event(), at_ms=NOW_MS)
    await stripe_store.give_up(["evt_1"], error="cannot be")
    due = await stripe_store.due_events(now_ms=NOW_MS + 9, busy=(), subjects_max=9)
    [dead] = await stripe_store.inbox(state="dead", after=None, limit=9)
    retried = [await stripe_store.retry_event(key, at_ms=NOW_MS) for key in ("evt_1", "evt_2")]

    assert due == []
    assert (dead.last_error, dead.attempts) == ("cannot be", 1)
    assert retried == [True, False]
    assert len(await stripe_store.due_events(now_ms=NOW_MS, busy=(), subjects_max=9)) == 1


async def test_events_of_a_customer_nobody_knew_wait_for_its_link(
    stripe_store: StripeStore,
) -> None:
    """Only its own, and only those that ended as a stranger's, are pending again."""
    for event_id, outcome in (("evt_1", UNKNOWN_CUSTOMER), ("evt_2", "applied")):
        await stripe_store.keep_event(make_event(event_id), at_ms=NOW_MS)
        await stripe_store.settle(Settlement(done={event_id: outcome}, at_ms=NOW_MS))
    others = await stripe_store.retry_unknown("cus_2", at_ms=NOW_MS + 5)
    own = await stripe_store.retry_unknown("cus_1", at_ms=NOW_MS + 5)
    due = await stripe_store.due_events(now_ms=NOW_MS + 9, busy=(), subjects_max=9)

    assert (others, own) == (0, 1)
    assert [(each.event.id, each.attempts) for each in due] == [("evt_1", 0)]


async def test_the_inbox_tells_how_it_stands(stripe_store: StripeStore) -> None:
    """What waits, since when, and what is dead: alerts are made of it."""
    empty = await stripe_store.inbox_figures()
    for number in range(3):
        await stripe_store.keep_event(make_event(f"evt_{number}"), at_ms=NOW_MS + number)
    await stripe_store.give_up(["evt_0"], error="cannot be")
    await stripe_store.postpone(["evt_2"], error="away", next_attempt_at_ms=NOW_MS + 60_000)

    assert (empty.waiting, empty.oldest_at_ms, empty.dead) == (0, None, 0)
    found = await stripe_store.inbox_figures()
    assert (found.waiting, found.oldest_at_ms, found.dead) == (2, NOW_MS + 1, 1)
    assert (found.retried, found.next_attempt_at_ms) == (1, NOW_MS + 1)


async def test_the_inbox_is_listed_newest_first_page_by_page(stripe_store: StripeStore) -> None:
    """Pages go on where they stopped, also among events of one instant."""
    for number in range(5):
        await stripe_store.keep_event(make_event(f"evt_{number}"), at_ms=NOW_MS + number // 2)

    first = await stripe_store.inbox(state=None, after=None, limit=2)
    after = (first[-1].received_at_ms, first[-1].id)
    second = await stripe_store.inbox(state="pending", after=after, limit=9)

    assert [entry.id for entry in (*first, *second)] == [
        "evt_4",
        "evt_3",
        "evt_2",
        "evt_1",
        "evt_0",
    ]


async def test_customer_decides_whose_a_subscription_is_then_its_metadata(
    stripe_store: StripeStore,
) -> None:
    """A linked customer outranks what a subscription says of itself."""
    found = [
        await stripe_store.organization_of(*asked)
        for asked in (
            ("cus_1", None),
            ("cus_1", "org_2"),
            ("cus_9", "org_2"),
            (None, "org_2"),
            ("cus_9", "org_9"),
            (None, None),
        )
    ]

    assert found == ["org_1", "org_1", "org_2", "org_2", None, None]


async def test_a_replaced_owner_settles_nothing(stripe_store: StripeStore, owned: Owned) -> None:
    """Two processes that both work the inbox off would overwrite each other's news."""
    await stripe_store.keep_event(make_event(), at_ms=NOW_MS)
    await take_ownership(owned.store)

    with pytest.raises(OwnershipLostError):
        await stripe_store.settle(
            Settlement(
                organization_id="org_1",
                subscriptions=(seen_subscription(),),
                done={"evt_1": "applied"},
                at_ms=NOW_MS,
            )
        )
    assert (await stripe_store.seen("org_1")).subscriptions == {}
    assert len(await stripe_store.due_events(now_ms=NOW_MS, busy=(), subjects_max=9)) == 1
