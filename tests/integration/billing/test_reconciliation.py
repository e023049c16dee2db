"""Both sides held against each other, on the real actors and the fake Stripe."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from trio.testing import MockClock

from meterd.actors.charge_policy import ChargePolicy
from meterd.actors.reconciliation import Reconciled
from meterd.core.overage import ChargeState, Review
from meterd.core.plan import Contract, Tier
from meterd.core.reconciliation import is_too_much
from tests.integration.billing.rig import DAY_S, Rig, open_rig, reconciliation_of


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")

SMALL = Contract(agent_minutes=100, grace_percent=1_000)


async def reconcile(rig: Rig, *, is_dry: bool = False) -> Reconciled:
    """Reconcile once."""
    return await reconciliation_of(rig).run(is_dry=is_dry)


def kinds(found: Reconciled) -> Sequence[str]:
    """Return what kinds of differences were found."""
    return [each.kind for each in found.differences]


async def plan_of(rig: Rig, organization_id: str = "org_1") -> Tier:
    """Return the plan an organization has."""
    return (await rig.organizations.snapshot(organization_id)).terms.plan


async def charge_a_month(rig: Rig) -> Any:
    """Let a subscribed organization use 20 minutes too many, and the month end."""
    await rig.create("org_1", contract=SMALL)
    subscription = rig.subscribe("org_1", rig.make_price("pro", 14_900))
    await rig.hear()
    await rig.use("org_1", 120)
    await rig.advance(32)
    return subscription


async def pass_boundary(rig: Rig) -> None:
    """Let January end: what is charged lies on the drafts of the renewals."""
    await rig.advance(31 - 1 / DAY_S)
    rig.fake.clock.jump_to(rig.fake.clock.now_s + 60)
    while rig.fake.world.run_due():
        pass
    await rig.hear()
    await rig.work()


async def test_active_there_and_free_here_is_repaired_by_one_reconciliation(
    autojump_clock: MockClock,
) -> None:
    """Every webhook was lost; a dry run tells it, a real one repairs it, the next finds nothing."""
    async with open_rig() as rig:
        await rig.create("org_1")
        rig.is_deaf = True
        subscription = rig.subscribe("org_1", rig.make_price("pro", 14_900))
        await rig.hear()

        dry = await reconcile(rig, is_dry=True)
        assert (kinds(dry), await plan_of(rig)) == (["subscription_unseen"], Tier.FREE)
        assert rig.database.findings == {}

        found = await reconcile(rig)
        assert (found.repaired, await plan_of(rig)) == (1, Tier.PRO)
        ((organization_id, finding),) = rig.database.findings.values()
        assert (organization_id, finding.kind) == ("org_1", "stripe_subscription_unseen")
        assert json.loads(finding.detail_json) == {
            "repair": "follow",
            "status": "active",
            "subject": subscription["id"],
        }
        assert kinds(await reconcile(rig)) == []


async def test_a_cancellation_and_a_payment_that_nobody_told_are_repaired(
    autojump_clock: MockClock,
) -> None:
    """Plan, period and past-due mark follow from what Stripe has, not from what arrived."""
    async with open_rig() as rig:
        price = rig.make_price("pro", 14_900)
        for key in ("org_1", "org_2"):
            await rig.create(key)
            made = rig.subscribe(key, price)
        await rig.hear()
        rig.is_deaf = True
        rig.fake.set_payments(made["customer"], "fail")
        first = rig.fake.objects("subscription")[0]
        rig.call("DELETE", f"/v1/subscriptions/{first['id']}")
        await rig.advance(32)

        found = await reconcile(rig)

        assert set(kinds(found)) == {"subscription_differs", "invoice_differs"}
        assert await plan_of(rig, "org_1") is Tier.FREE
        snapshot = await rig.organizations.snapshot("org_2")
        assert snapshot.profile.past_due_since_ms is not None
        assert kinds(await reconcile(rig)) == []


async def test_undelivered_events_are_received(autojump_clock: MockClock) -> None:
    """What no endpoint acknowledged is in the inbox after it, once."""
    async with open_rig() as rig:
        await rig.create("org_1")
        rig.fake.add_endpoint("http://127.0.0.1:9/hook", secret="whsec_x")
        rig.is_deaf = True
        rig.subscribe("org_1", rig.make_price("pro", 14_900))
        await rig.hear()

        found = await reconcile(rig)

        undelivered = {event["id"] for event in rig.fake.events if event["pending_webhooks"]}
        assert found.events == len(undelivered) > 0
        assert undelivered < rig.inbox.events.keys()
        assert (await reconcile(rig)).events == 0


async def test_an_item_that_was_deleted_is_pushed_again(autojump_clock: MockClock) -> None:
    """While its invoice is a draft: afterwards Stripe lets nobody delete it."""
    async with open_rig() as rig:
        await rig.create("org_1", contract=SMALL)
        rig.subscribe("org_1", rig.make_price("pro", 14_900))
        await rig.hear()
        await rig.use("org_1", 120)
        await pass_boundary(rig)
        (item,) = rig.items()
        draft_id = item["invoice"]
        rig.call("DELETE", f"/v1/invoiceitems/{item['id']}")

        found = await reconcile(rig)
        await rig.work()

        assert (kinds(found), found.repaired) == (["item_missing"], 1)
        assert (found.charged_cents, found.item_cents) == (100, 0)
        (again,) = rig.items()
        assert (again["amount"], again["invoice"]) == (100, draft_id)
        after = await reconcile(rig)
        assert (kinds(after), after.charged_cents, after.item_cents) == ([], 100, 100)


async def test_a_double_is_deleted_while_it_can_be_and_told_afterwards(
    autojump_clock: MockClock,
) -> None:
    """The one on an invoice stays; two on invoices are for a person."""
    async with open_rig() as rig:
        subscription = await charge_a_month(rig)
        (item,) = rig.items()
        rig.call(
            "POST",
            "/v1/invoiceitems",
            customer=subscription["customer"],
            amount=100,
            currency="usd",
            metadata__meterd_charge=item["metadata"]["meterd_charge"],
        )

        found = await reconcile(rig)

        assert (kinds(found), found.repaired) == (["item_twice"], 1)
        assert [each["id"] for each in rig.items()] == [item["id"]]
        assert kinds(await reconcile(rig)) == []


async def test_items_that_nobody_knows_and_wrong_amounts_are_told(
    autojump_clock: MockClock,
) -> None:
    """Nothing of what a person made at Stripe is deleted or changed."""
    async with open_rig() as rig:
        subscription = await charge_a_month(rig)
        (charge,) = rig.kept.kept.values()
        rig.kept.kept[charge.id] = attrs.evolve(charge, amount_cents=101)
        rig.call(
            "POST",
            "/v1/invoiceitems",
            customer=subscription["customer"],
            amount=5,
            currency="usd",
            metadata__meterd_charge="chg_unknown",
        )

        found = await reconcile(rig)

        assert (sorted(kinds(found)), found.repaired) == (["item_differs", "item_orphan"], 0)
        assert len(rig.items()) == 2


async def test_a_subscription_of_nobody_and_one_that_is_gone_are_told(
    autojump_clock: MockClock,
) -> None:
    """Somebody pays and has nothing, or has something that Stripe does not know."""
    async with open_rig() as rig:
        await rig.create("org_1")
        price = rig.make_price("pro", 14_900)
        gone = rig.subscribe("org_1", price)
        await rig.hear()
        nobodys = rig.subscribe("org_of_nobody", price)
        del rig.fake.world.table("subscription")[gone["id"]]

        found = await reconcile(rig)

        assert [(each.kind, each.subject) for each in found.differences] == [
            ("subscription_orphan", nobodys["id"]),
            ("subscription_gone", gone["id"]),
        ]
        assert await plan_of(rig) is Tier.PRO


async def test_a_subscription_that_went_to_another_organization_is_told(
    autojump_clock: MockClock,
) -> None:
    """An operator linked its customer elsewhere: one payment must not give two plans unseen."""
    async with open_rig() as rig:
        for key in ("org_1", "org_2"):
            await rig.create(key)
        made = rig.subscribe("org_1", rig.make_price("pro", 14_900))
        await rig.hear()
        for key, customer in (("org_1", None), ("org_2", made["customer"])):
            await rig.link(key, customer)

        found = await reconcile(rig)

        told = [(each.kind, each.organization_id) for each in found.differences]
        assert told == [("subscription_unseen", "org_2"), ("subscription_of_another", "org_1")]
        assert [await plan_of(rig, key) for key in ("org_1", "org_2")] == [Tier.PRO, Tier.PRO]
        assert kinds(await reconcile(rig)) == ["subscription_of_another"]


async def test_more_downgrades_than_anybody_believes_stop_it(autojump_clock: MockClock) -> None:
    """An account that seems to have lost its customers is more likely the wrong account."""
    async with open_rig() as rig:
        price = rig.make_price("pro", 14_900)
        for number in range(4):
            await rig.create(f"org_{number}")
            rig.subscribe(f"org_{number}", price)
        await rig.hear()
        rig.is_deaf = True
        for subscription in list(rig.fake.objects("subscription")):
            rig.call("DELETE", f"/v1/subscriptions/{subscription['id']}")
        await rig.hear()

        found = await reconcile(rig)

        assert (found.stopped, found.repaired) == ("4 downgrades of 0 subscriptions", 0)
        assert await plan_of(rig, "org_0") is Tier.PRO
        told = {finding.kind for _, finding in rig.database.findings.values()}
        assert told == {"stripe_subscription_differs", "stripe_reconciliation_stopped"}


async def test_objects_of_the_wrong_mode_stop_it(autojump_clock: MockClock) -> None:
    """Test customers must not decide what real ones may do."""
    async with open_rig() as rig:
        await rig.create("org_1")
        rig.fake.settings.livemode = True
        rig.subscribe("org_1", rig.make_price("pro", 14_900))
        rig.told.clear()

        found = await reconcile(rig)

        assert found.stopped is not None
        assert "wrong livemode" in found.stopped
        assert await plan_of(rig) is Tier.FREE


async def test_another_account_s_key_makes_no_charge_new_again(autojump_clock: MockClock) -> None:
    """It has none of our items: pushed again, they would all be charged in the wrong place."""
    async with open_rig() as rig:
        price = rig.make_price("pro", 14_900)
        for number in range(4):
            await rig.create(f"org_{number}", contract=SMALL)
            rig.subscribe(f"org_{number}", price)
        await rig.hear()
        for number in range(4):
            await rig.use(f"org_{number}", 120)
        await pass_boundary(rig)
        assert {each.state for each in rig.kept.kept.values()} == {ChargeState.PUSHED}
        for item in rig.items():
            rig.call("DELETE", f"/v1/invoiceitems/{item['id']}")

        found = await reconcile(rig)
        await rig.work()

        assert found.stopped == "4 of 4 charges have no invoice item"
        assert (found.repaired, rig.items()) == (0, [])
        assert {each.state for each in rig.kept.kept.values()} == {ChargeState.PUSHED}


async def test_the_wrong_mode_stops_repairs_of_charges_too(autojump_clock: MockClock) -> None:
    """What is stopped is stopped as a whole: no item is deleted and none is pushed."""
    async with open_rig() as rig:
        await rig.create("org_1", contract=SMALL)
        rig.subscribe("org_1", rig.make_price("pro", 14_900))
        await rig.hear()
        await rig.use("org_1", 120)
        await pass_boundary(rig)
        (item,) = rig.items()
        rig.call("DELETE", f"/v1/invoiceitems/{item['id']}")
        for subscription in rig.fake.world.tables["subscription"].values():
            subscription["livemode"] = True

        found = await reconcile(rig)
        await rig.work()

        assert "item_missing" in kinds(found)
        assert (found.repaired, rig.items()) == (0, [])


@pytest.mark.parametrize(
    ("downgrades", "followed", "stops"),
    [(3, 0, False), (4, 0, True), (4, 200, False), (20, 5_000, False), (21, 5_000, True)],
)
def test_the_breaker_allows_three_or_two_percent_and_never_more_than_twenty(
    *, downgrades: int, followed: int, stops: bool
) -> None:
    """Large enough for a normal day, small enough for a mistake."""
    assert is_too_much(downgrades, followed) is stops


async def test_a_year_old_charge_is_not_an_orphan(autojump_clock: MockClock) -> None:
    """An item made late belongs to a charge whose period ended long before the window."""
    async with open_rig() as rig:
        await charge_a_month(rig)
        await rig.advance(70)
        await rig.use("org_1", 10, period="2026-01")
        await rig.advance(1)

        found = await reconcile(rig)

        assert kinds(found) == []
        late = [c for c in rig.kept.kept.values() if c.seq == 2]
        assert [c.state for c in late] == [ChargeState.PUSHED]


async def test_a_plan_that_does_not_follow_from_what_was_seen_is_repaired(
    autojump_clock: MockClock,
) -> None:
    """Both sides know the same subscription, and still the organization has another plan."""
    async with open_rig() as rig:
        await rig.create("org_1")
        rig.subscribe("org_1", rig.make_price("pro", 14_900))
        await rig.hear()
        cell = rig.organizations.cells.get("org_1")
        assert cell is not None
        assert cell.state is not None
        cell.state = attrs.evolve(
            cell.state, terms=attrs.evolve(cell.state.terms, plan=Tier.STARTER)
        )

        found = await reconcile(rig)

        assert (kinds(found), found.repaired) == (["plan_differs"], 1)
        assert found.differences[0].detail == {"plan": "starter", "stripe": "pro"}
        assert await plan_of(rig) is Tier.PRO
        assert kinds(await reconcile(rig)) == []


async def test_two_live_subscriptions_and_an_item_of_a_held_charge_are_for_a_person(
    autojump_clock: MockClock,
) -> None:
    """Which of two to cancel, and what a void charge is doing on an invoice, nobody can compute."""
    async with open_rig(policy=ChargePolicy(review=Review(None))) as rig:
        subscription = await charge_a_month(rig)
        (charge,) = rig.kept.kept.values()
        assert charge.state is ChargeState.REVIEW
        rig.subscribe("org_1", rig.make_price("starter", 4_900), subscription["customer"])
        await rig.hear()
        rig.call(
            "POST",
            "/v1/invoiceitems",
            customer=subscription["customer"],
            amount=100,
            currency="usd",
            metadata__meterd_charge=charge.id,
        )

        found = await reconcile(rig)

        assert (kinds(found), found.repaired) == (["several_live", "item_of_held_charge"], 0)
        assert len(rig.items()) == 1
        assert await plan_of(rig) is Tier.PRO
