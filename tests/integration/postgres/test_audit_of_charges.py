"""The audit of charges on real PostgreSQL: silent when they add up, loud when they do not."""

from __future__ import annotations

from decimal import Decimal

import attrs
import pytest

from meterd.adapters.postgres.audit import audit
from meterd.adapters.postgres.charges import PostgresCharges
from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.store import PostgresStore
from meterd.core.overage import Review, new_charges
from meterd.core.units import DAY_MS
from meterd.core.usage import Kind
from tests.make import FixedClock, make_batch, make_new, make_period, make_row


pytestmark = pytest.mark.slow


async def charged(pools: PostgresPools) -> None:
    """Close and charge a February that costs 1.005 dollars."""
    store = PostgresStore(pools, epoch=0, clock=FixedClock())
    await store.create_organization(make_new())
    rate, cost = Decimal("0.201"), Decimal("1.005")
    row = make_row(kind=Kind.OVERAGE, quantity=5, unit_cost_usd=rate, total_cost_usd=cost)
    closed = make_period(closed=True, total_usd=cost, overage_usd=cost, overage_minutes=5)
    march = make_period(start_ms=closed.end_ms, end_ms=closed.end_ms + 31 * DAY_MS, label="2026-03")
    await store.flush([make_batch(rows=(row,), periods=(closed, march))])
    charges = PostgresCharges(pools, 0)
    (bill,) = await charges.bills(ended_since_ms=0, limit=2)
    bill = attrs.evolve(bill, customer_id="cus_1")
    made = new_charges(bill, Review(), now_ms=closed.end_ms)
    assert [charge.amount_cents for charge in made] == [101]
    await charges.book(bill, made, [], at_ms=closed.end_ms)


async def differences_of_charges(pools: PostgresPools) -> list[tuple[str, str, str | None]]:
    """Return what the audit says of charges."""
    found = await audit(pools)
    return [
        (each.subject, each.what, each.found)
        for each in found.differences
        if each.check == "charges"
    ]


async def test_a_period_that_was_charged_its_rounded_cost_is_right(pools: PostgresPools) -> None:
    """Half a cent up, once."""
    await charged(pools)

    assert await differences_of_charges(pools) == []


async def test_a_charge_of_another_amount_is_told(pools: PostgresPools) -> None:
    """Changed past the trigger that forbids it, as only a superuser can."""
    await charged(pools)

    async def tamper(connection: Connection) -> None:
        async with connection.transaction():
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute("UPDATE overage_charges SET amount_cents = 100")

    await pools.write("tamper", tamper)

    assert await differences_of_charges(pools) == [("2026-02", "charged cents", "100")]
