"""`ChargeStore`: what a closed period owes is read in one piece, booked once, moved by one hand."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import attrs
import pytest

from meterd.adapters.memory.charges import MemoryCharges
from meterd.adapters.memory.store import MemoryStore
from meterd.adapters.postgres.charges import PostgresCharges
from meterd.adapters.postgres.store import PostgresStore
from meterd.core.cycle import Cycle
from meterd.core.overage import Charge, ChargeState, Cost, PeriodBill, Review, new_charges
from meterd.core.period import Period
from meterd.core.plan import Resource, Tier
from meterd.core.units import DAY_MS
from meterd.core.usage import Kind, UsageRow
from meterd.errors import OwnershipLostError, StoreRejectedError
from meterd.ports.charges import ChargeFigures, ChargeStore, StoredFinding
from tests.contract.conftest import Owned, Store, query, take_ownership, written
from tests.make import (
    NOW_MS,
    make_audit,
    make_batch,
    make_finding,
    make_new,
    make_period,
    make_profile,
    make_row,
    make_task,
    make_terms,
)


END_MS = make_period().end_ms
CYCLE = Cycle(subscription_id="sub_1", start_ms=NOW_MS, end_ms=END_MS, anchor_ms=NOW_MS, months=1)


@pytest.fixture
def charges(owned: Owned) -> ChargeStore:
    """Give the charges of the same database and owner."""
    store = owned.store
    if isinstance(store, MemoryStore):
        return MemoryCharges(store.database, store.epoch)
    return PostgresCharges(store.pools, store.epoch)


def overage_row(number: int, minutes: int, **fields: object) -> UsageRow:
    """Return a row of overage minutes at five cents."""
    return make_row(
        number,
        kind=Kind.OVERAGE,
        quantity=minutes,
        unit_cost_usd=Decimal("0.05"),
        total_cost_usd=minutes * Decimal("0.05"),
        **fields,
    )


async def close(
    store: Store,
    minutes: int = 20,
    *,
    seq: int = 1,
    number: int = 0,
    total_minutes: int | None = None,
    organization_id: str = "org_1",
) -> Period:
    """Close February with overage, and open March."""
    total = (minutes if total_minutes is None else total_minutes) * Decimal("0.05")
    closed = make_period(closed=True, overage_minutes=minutes, overage_usd=total, total_usd=total)
    march = make_period(start_ms=END_MS, end_ms=END_MS + 31 * DAY_MS, label="2026-03")
    row = overage_row(number, minutes, seq=seq)
    batch = make_batch(organization_id, seq=seq, rows=(row,), periods=(closed, march))
    await store.flush([batch])
    return closed


async def only_bill(charges: ChargeStore) -> PeriodBill:
    """Return the only bill there is."""
    (bill,) = await charges.bills(ended_since_ms=0, limit=10)
    return bill


async def booked(store: Store, charges: ChargeStore) -> Charge:
    """Return the charge of a February with twenty minutes of overage, booked."""
    await store.create_organization(make_new())
    await close(store)
    bill = attrs.evolve(await only_bill(charges), customer_id="cus_1")
    (charge,) = new_charges(bill, Review(), now_ms=END_MS)
    await charges.book(bill, [charge], [], at_ms=END_MS)
    return charge


async def listed(charges: ChargeStore, state: ChargeState | None = None) -> Sequence[Charge]:
    """Return all charges, or those in a state."""
    return await charges.charges(state=state, organization_id=None, after=None, limit=10)


async def test_a_bill_holds_all_that_a_charge_depends_on(
    store: Store, charges: ChargeStore
) -> None:
    """Costs, customer, subscription, alerts, tasks that have not reported past the end."""
    await store.create_organization(make_new())
    await close(store)
    silent = make_task("silent", reported_at_ms=END_MS - 1)
    heard = make_task("heard", reported_at_ms=END_MS)
    later = make_task("later", started_at_ms=END_MS, reported_at_ms=END_MS)
    profile = make_profile(
        stripe_customer_id="cus_1", cycle=CYCLE, billing_alerts=frozenset({"other_currency:eur"})
    )
    await store.flush([make_batch(seq=2, started=(silent, heard, later), profile=profile)])

    assert await only_bill(charges) == PeriodBill(
        organization_id="org_1",
        billing_period="2026-02",
        start_ms=make_period().start_ms,
        end_ms=END_MS,
        seq=1,
        costs=(Cost(resource=Resource.AGENT_MINUTE, quantity=20, cost_usd=Decimal(1)),),
        customer_id="cus_1",
        subscription_id="sub_1",
        billing_alerts=frozenset({"other_currency:eur"}),
        unreported_tasks=1,
    )


async def test_an_open_or_free_period_has_no_bill(store: Store, charges: ChargeStore) -> None:
    """Nothing is charged before it is over, and nothing for nothing."""
    await store.create_organization(make_new())
    open_period = make_period(total_usd=Decimal(1))
    await store.flush([make_batch(rows=(overage_row(0, 20),), periods=(open_period,))])
    assert await charges.bills(ended_since_ms=0, limit=10) == []

    closed = make_period(closed=True)
    march = make_period(start_ms=END_MS, end_ms=END_MS + 31 * DAY_MS, label="2026-03")
    await store.flush([make_batch(seq=2, periods=(closed, march))])
    assert await charges.bills(ended_since_ms=0, limit=10) == []


@pytest.mark.parametrize(("used_under", "is_unlimited"), [(1, False), (2, True)])
async def test_the_plan_that_minutes_ran_under_says_whether_they_are_unlimited(
    store: Store, charges: ChargeStore, used_under: int, *, is_unlimited: bool
) -> None:
    """Who ran away and cancelled is on Free when the period ends: nobody had stopped it."""
    await store.create_organization(make_new())
    terms = (make_terms(Tier.ENTERPRISE, seq=2), make_terms(Tier.FREE, seq=3))
    closed = make_period(closed=True, total_usd=Decimal(1), terms_seq=3)
    march = make_period(start_ms=END_MS, end_ms=END_MS + 31 * DAY_MS, label="2026-03", terms_seq=3)
    rows = (overage_row(0, 20, terms_seq=used_under),)
    await store.flush([make_batch(terms=terms, rows=rows, periods=(closed, march))])

    assert (await only_bill(charges)).is_unlimited is is_unlimited


async def test_a_charged_period_comes_back_only_when_it_changes(
    store: Store, charges: ChargeStore
) -> None:
    """A late row is the next charge; without one there is nothing to look at."""
    charge = await booked(store, charges)
    assert await charges.bills(ended_since_ms=0, limit=10) == []

    await close(store, 5, seq=2, number=1, total_minutes=25)

    bill = await only_bill(charges)
    assert bill.charges == (charge,)
    assert [(cost.quantity, cost.cost_usd) for cost in bill.costs] == [(25, Decimal("1.25"))]
    assert await charges.bills(ended_since_ms=END_MS + 1, limit=10) == []


async def test_a_period_credited_to_nothing_comes_back(store: Store, charges: ChargeStore) -> None:
    """Its charge must be taken back although its cost is zero now."""
    await booked(store, charges)

    await close(store, -20, seq=2, number=1, total_minutes=0)

    assert [cost.cost_usd for cost in (await only_bill(charges)).costs] == [Decimal(0)]


async def test_booking_again_writes_nothing_again(store: Store, charges: ChargeStore) -> None:
    """A lost reply of the store is answered by doing it once more."""
    await store.create_organization(make_new())
    await close(store)
    bill = attrs.evolve(await only_bill(charges), customer_id="cus_1")
    made = new_charges(bill, Review(), now_ms=END_MS)

    await charges.book(bill, made, [make_finding()], at_ms=END_MS)
    await charges.book(bill, made, [make_finding()], at_ms=END_MS + 1)

    assert list(await listed(charges)) == list(made)
    assert await written(store, "findings") == 1


async def test_earlier_periods_tell_what_is_usual(store: Store, charges: ChargeStore) -> None:
    """The sum of each of the three periods before, newest first; one without charges is zero."""
    await booked(store, charges)
    starts = [END_MS + month * 30 * DAY_MS for month in range(3)]
    labels = ["2026-03", "2026-04", "2026-05"]
    march, april, may = (
        make_period(
            start_ms=start_ms, end_ms=start_ms + 30 * DAY_MS, label=label,
            closed=label != "2026-05", total_usd=Decimal(label == "2026-04"),
        )
        for start_ms, label in zip(starts, labels, strict=True)
    )  # fmt: skip
    row = overage_row(7, 20, billing_period="2026-04")
    await store.flush([make_batch(seq=2, rows=(row,), periods=(march, april, may))])

    assert list((await only_bill(charges)).earlier_cents) == [0, 100]


async def test_a_charge_moves_from_the_state_it_was_read_in_only(
    store: Store, charges: ChargeStore
) -> None:
    """Two hands on one charge: the second finds that it has moved."""
    charge = await booked(store, charges)
    pushing = attrs.evolve(
        charge, state=ChargeState.PUSHING, customer_id="cus_1", attempt=1, key_at_ms=END_MS,
        first_at_ms=END_MS, tries=2, next_attempt_at_ms=END_MS + 5, last_error="e",
        invoice_id="in_1", reason="r",
    )  # fmt: skip
    finding, audit = make_finding(), make_audit()

    assert await charges.move_charge(charge, pushing, at_ms=END_MS)
    assert not await charges.move_charge(
        charge, pushing, at_ms=END_MS, findings=[finding], audit=audit
    )
    assert await charges.charge(charge.id) == pushing
    assert await written(store, "findings") == 0

    pushed = attrs.evolve(pushing, state=ChargeState.PUSHED, invoice_item_id="ii_1")
    assert await charges.move_charge(pushing, pushed, at_ms=END_MS, findings=[finding], audit=audit)
    assert await charges.charge(charge.id) == pushed
    assert await charges.charge("chg_unknown") is None
    assert await written(store, "findings") == 1


async def test_due_are_charges_that_are_meterd_s_to_move(
    store: Store, charges: ChargeStore
) -> None:
    """With the customer and the subscription as they are now, not as they were."""
    charge = await booked(store, charges)
    assert await charges.due_charges(now_ms=END_MS - 1, limit=10) == []
    profile = make_profile(stripe_customer_id="cus_2", cycle=CYCLE)
    await store.flush([make_batch(seq=2, profile=profile)])

    (due,) = await charges.due_charges(now_ms=END_MS, limit=10)

    assert due.charge == charge
    assert await charges.followed_subscriptions() == [("org_1", "sub_1")]
    assert (due.customer_id, due.cycle_subscription_id, due.cycle_months) == ("cus_2", "sub_1", 1)
    profile = attrs.evolve(profile, billing_alerts=frozenset({"other_customer:cus_3"}))
    await store.flush([make_batch(seq=3, profile=profile)])
    (due,) = await charges.due_charges(now_ms=END_MS, limit=10)
    assert (due.cycle_subscription_id, due.cycle_months) == (None, None)
    held = attrs.evolve(charge, state=ChargeState.MANUAL)
    assert await charges.reviewed_organizations(limit=5) == ["org_1"]
    assert await charges.move_charge(charge, held, at_ms=END_MS)
    assert await charges.due_charges(now_ms=END_MS, limit=10) == []
    assert await charges.reviewed_organizations(limit=5) == []


async def test_charges_are_listed_newest_first_page_by_page(
    store: Store, charges: ChargeStore
) -> None:
    """An operator finds those that wait, and of one organization."""
    for number in range(3):
        key = f"org_{number}"
        await store.create_organization(make_new(key))
        total = Decimal(1)
        closed = make_period(closed=True, total_usd=total)
        march = make_period(start_ms=END_MS, end_ms=END_MS + DAY_MS, label="2026-03")
        rows = (overage_row(number, 20),)
        await store.flush([make_batch(key, rows=rows, periods=(closed, march))])
    for index, bill in enumerate(await charges.bills(ended_since_ms=0, limit=10)):
        made = new_charges(bill, Review(), now_ms=END_MS + index)
        await charges.book(bill, made, [], at_ms=END_MS)

    first = await charges.charges(state=None, organization_id=None, after=None, limit=2)
    last = (first[-1].created_at_ms, first[-1].id)
    rest = await charges.charges(state=None, organization_id=None, after=last, limit=2)

    assert [each.organization_id for each in (*first, *rest)] == ["org_2", "org_1", "org_0"]
    assert len(await listed(charges, ChargeState.MANUAL)) == 3
    assert await listed(charges, ChargeState.NEW) == []
    (one,) = await charges.charges(state=None, organization_id="org_1", after=None, limit=9)
    assert one.organization_id == "org_1"
    assert len(await charges.charges_ended_since(END_MS)) == 3
    assert await charges.charges_ended_since(END_MS + 1) == []


async def test_periods_that_nobody_turned_are_found(store: Store, charges: ChargeStore) -> None:
    """An organization that nobody asks for is woken up to close its month."""
    await store.create_organization(make_new())

    assert await charges.periods_overdue(now_ms=END_MS - 1, limit=10) == []
    assert await charges.periods_overdue(now_ms=END_MS, limit=10) == ["org_1"]


async def test_only_the_owner_writes(store: Store, charges: ChargeStore) -> None:
    """A process that lost the database pushes nothing that its successor does not know of."""
    charge = await booked(store, charges)
    pushing = attrs.evolve(
        charge, state=ChargeState.PUSHING, customer_id="cus_1", attempt=1, key_at_ms=END_MS
    )
    await close(store, 5, seq=2, number=1, total_minutes=25)
    bill = await only_bill(charges)

    await take_ownership(store)

    with pytest.raises(OwnershipLostError):
        await charges.move_charge(charge, pushing, at_ms=END_MS)
    with pytest.raises(OwnershipLostError):
        await charges.book(bill, [], [], at_ms=END_MS)
    stored = StoredFinding(organization_id=None, finding=make_finding())
    with pytest.raises(OwnershipLostError):
        await charges.report([stored])
    assert await charges.charge(charge.id) == charge


async def test_a_finding_without_an_organization_is_kept_once(
    store: Store, charges: ChargeStore
) -> None:
    """Some things at Stripe are nobody's."""
    stored = StoredFinding(organization_id=None, finding=make_finding())

    await charges.report([stored, stored])

    assert await written(store, "findings") == 1


@pytest.mark.parametrize("url", ["database_url"], indirect=True)
async def test_the_database_keeps_a_charge_s_amount(store: Store, charges: ChargeStore) -> None:
    """Not even by hand is something charged another amount than what was booked."""
    assert isinstance(store, PostgresStore)
    charge = await booked(store, charges)

    for text in (
        "UPDATE overage_charges SET amount_cents = 1 WHERE id = $1",
        "DELETE FROM overage_charges WHERE id = $1",
    ):
        with pytest.raises(StoreRejectedError, match="a charge keeps its amount"):
            await query(store, text, charge.id)


@pytest.mark.parametrize("missing", ["attempt", "customer_id", "invoice_item_id"])
async def test_a_charge_at_stripe_has_an_attempt_a_customer_and_an_item(
    store: Store, charges: ChargeStore, missing: str
) -> None:
    """Without one of them nobody could tell later whether it was charged."""
    charge = await booked(store, charges)
    whole: dict[str, Any] = {"attempt": 1, "customer_id": "cus_1", "invoice_item_id": "ii_1"}
    given = {**whole, missing: 0 if missing == "attempt" else None}
    pushed = attrs.evolve(charge, state=ChargeState.PUSHED, **given)

    with pytest.raises(StoreRejectedError):
        await charges.move_charge(charge, pushed, at_ms=END_MS)


async def test_charges_that_are_not_final_are_counted(store: Store, charges: ChargeStore) -> None:
    """What waits, in which state and since when: operators and alerts see it."""
    none = await charges.charge_figures()
    charge = await booked(store, charges)
    new = await charges.charge_figures()
    pushed = attrs.evolve(
        charge,
        state=ChargeState.PUSHED,
        attempt=1,
        customer_id="cus_1",
        invoice_item_id="ii_1",
    )
    assert await charges.move_charge(charge, pushed, at_ms=END_MS + 1)
    at_stripe = await charges.charge_figures()
    invoiced = attrs.evolve(pushed, state=ChargeState.INVOICED)
    assert await charges.move_charge(pushed, invoiced, at_ms=END_MS + 2)

    assert none == ChargeFigures()
    assert new == ChargeFigures(by_state={ChargeState.NEW: 1}, oldest_at_ms=END_MS)
    assert at_stripe == ChargeFigures(by_state={ChargeState.PUSHED: 1})
    assert await charges.charge_figures() == ChargeFigures()
