"""A year of charging: what Stripe has is what the ledger says, to the cent, whatever went wrong."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import functools
import random
from collections import Counter
from decimal import Decimal

import pytest
import trio
from trio.testing import MockClock

from meterd.actors.reconciliation import Reconciled
from meterd.core.money import amount_cents, total_usd
from meterd.core.overage import ChargeState
from meterd.core.plan import Contract, Tier
from meterd.errors import PaymentsUnavailableError
from meterd.testing.fake_stripe import RequestFault
from tests.integration.billing.rig import Rig, open_rig, reconciliation_of


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")

ORGANIZATIONS = 50
MONTHS = 12

FAULTS = {
    RequestFault.DROP_BEFORE: 0.03,
    RequestFault.DROP_AFTER: 0.05,
    RequestFault.RATE_LIMITED: 0.05,
    RequestFault.ERROR_BEFORE: 0.03,
    RequestFault.ERROR_AFTER: 0.05,
    RequestFault.TIMEOUT_AFTER: 0.02,
}


def owed_cents(rig: Rig, organization_id: str) -> int:
    """Return the naive sum: every closed period's rows, rounded once for each period."""
    record = rig.database.organizations[organization_id]
    closed = {period.label for _, period in record.periods.values() if period.closed}
    total = 0
    for label in closed:
        rows = [row for row in record.rows.values() if row.billing_period == label]
        total += amount_cents(total_usd(tuple(row.total_cost_usd for row in rows)))
    return total


def scrambled(chance: random.Random, told: list[str]) -> list[str]:
    """Return webhooks as they arrive: a tenth never, others twice, in any order."""
    arrived = [each for each in told for _ in range(chance.choice([0, 1, 1, 1, 1, 1, 1, 1, 1, 2]))]
    chance.shuffle(arrived)
    return arrived


async def live_a_month(rig: Rig, chance: random.Random, prices: dict[str, str]) -> None:
    """Use some time, correct some of what is past, and let the month go by."""
    for number in range(ORGANIZATIONS):
        key = f"org_{number}"
        await rig.use(key, chance.randint(80, 130))
        if chance.random() < 0.3:
            await rig.use(key, chance.randint(1, 70))
        record = rig.database.organizations[key]
        closed = [period.label for _, period in record.periods.values() if period.closed]
        if closed and chance.random() < 0.2:
            await rig.use(key, chance.randint(-30, 30), period=chance.choice(closed))
    live = [each for each in rig.fake.objects("subscription") if each["status"] == "active"]
    for subscription in chance.sample(live, 2):
        rig.call("DELETE", f"/v1/subscriptions/{subscription['id']}")
        if chance.random() < 0.5:
            organization_id = subscription["metadata"]["organization_id"]
            rig.subscribe(organization_id, prices["pro"], subscription["customer"])
    days = 30.4
    if chance.random() < 0.3:  # Stripe is away for 25 hours in the middle of it
        before = chance.uniform(1, 28)
        await rig.advance(before)
        rig.fake.faults.away = True
        await rig.advance(25 / 24, works=False)
        await rig.charges.work()
        rig.fake.faults.away = False
        days -= before + 25 / 24
    await rig.advance(days)
    await reconcile_until_done(rig)


async def reconcile_until_done(rig: Rig) -> Reconciled:
    """Do what the daily job does: hold both sides against each other, again when Stripe fails."""
    while True:
        try:
            found = await reconciliation_of(rig).run()
        except PaymentsUnavailableError:
            await trio.sleep(1)
            continue
        assert found.stopped is None, found.stopped
        return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
async def test_a_year_of_faults_and_crashes_charges_every_cent_once(
    autojump_clock: MockClock, seed: int
) -> None:
    """50 organizations, 12 months, lost replies, 429, 500, time-outs, kills and lost webhooks."""
    chance = random.Random(seed)
    async with open_rig(seed=seed) as rig:
        prices = {
            "pro": rig.make_price("pro", 14_900),
            "yearly": rig.make_price("pro", 149_000, interval="year"),
        }
        rate = Decimal("0.012345")
        contract = Contract(agent_minutes=100, grace_percent=1_000, overage_usd_per_minute=rate)
        for number in range(ORGANIZATIONS):
            if number % 10 == 0:
                await rig.advance(1)
            key = f"org_{number}"
            has_customer = number % 10 != 9
            await rig.create(key, Tier.FREE if has_customer else Tier.PRO, contract)
            if has_customer:
                rig.subscribe(key, prices["yearly" if number % 10 == 8 else "pro"])
        await rig.hear()
        rig.fake.faults.request_rates.update(FAULTS)
        rig.wire.kill = lambda: chance.random() < 0.02
        rig.post = functools.partial(scrambled, chance)

        for _ in range(MONTHS):
            await live_a_month(rig, chance, prices)
        rig.fake.faults.clear()
        rig.wire.kill = lambda: False
        rig.post = list
        await reconcile_until_done(rig)
        for _ in range(5):
            await rig.advance(1)
        assert (await reconcile_until_done(rig)).differences == ()

        kept = list(rig.kept.kept.values())
        items = rig.items()
        found = Counter(item["metadata"]["meterd_charge"] for item in items)
        assert set(found.values()) == {1}
        pushed = {
            charge.id: charge.amount_cents
            for charge in kept
            if charge.state in {ChargeState.PUSHED, ChargeState.INVOICED}
        }
        assert {item["metadata"]["meterd_charge"]: item["amount"] for item in items} == pushed
        assert {charge.state for charge in kept} == {ChargeState.INVOICED, ChargeState.MANUAL}
        invoices = {each["id"]: each["status"] for each in rig.fake.objects("invoice")}
        assert {invoices[item["invoice"]] for item in items} == {"paid"}
        for number in range(ORGANIZATIONS):
            key = f"org_{number}"
            of_it = [charge for charge in kept if charge.organization_id == key]
            assert sum(charge.amount_cents for charge in of_it) == owed_cents(rig, key), key
        assert len(items) > ORGANIZATIONS * MONTHS / 2
        assert any(charge.amount_cents < 0 for charge in kept)
        assert rig.kills > MONTHS
