"""A task that runs over a renewal: split, closed and charged to the right invoice.

meterd, PostgreSQL and Stripe are those of the demonstration: real, but for the time they share,
which leaps from event to event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from meterd.core.units import MINUTE_MS
from meterd.demo.billing import World, open_world, until
from tests.integration.service.books import assert_books_are_right, query


pytestmark = [
    pytest.mark.slow,
    # The client hands httpx its body in an outdated way.
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
]

START = datetime(2026, 1, 1, 9, tzinfo=UTC)
RENEWAL = datetime(2026, 2, 1, 9, tzinfo=UTC)
CONTRACT = {"agent_minutes": 60, "grace_percent": 100}

DRIFT_MS = 10_000
"""Between two leaps time passes as it does outside: requests take some of it."""


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """Give both sides at the beginning of January."""
    async with open_world(
        tmp_path, start=START, say=lambda _: None, database_url=database_url
    ) as opened:
        yield opened


async def test_a_task_over_a_renewal_is_split_there_and_each_part_is_billed_once(
    world: World, database_url: str
) -> None:
    """90 minutes before, 60 after: 30 past the 60 included are on the renewal, none on the next."""
    acme = await world.customer("acme", "Acme", plan="free", contract=CONTRACT)
    found = await world.subscribe(acme, "starter")
    customer_id = found["stripe_customer_id"]
    await world.pass_until(RENEWAL - timedelta(minutes=90))
    task_id = (await acme.start(1)).json()["task_id"]
    await world.pass_minutes(60)
    await acme.heartbeat(task_id, 60 * MINUTE_MS)
    await world.pass_minutes(31)  # over the renewal; only now the agent reports again
    running = await acme.heartbeat(task_id, 91 * MINUTE_MS)
    (charge,) = await world.charged("acme", "pushed")
    await world.pass_minutes(59)
    await acme.finish(task_id, 150 * MINUTE_MS)
    await world.pass_until(RENEWAL + timedelta(hours=3))
    first, renewal = world.invoices(customer_id)
    parts = await parts_of(database_url, task_id)

    assert running["task"]["state"] == "running"
    assert sum(parts.values()) == 150 * MINUTE_MS
    january, february = parts["2026-01-01"], parts["2026-02"]
    assert 0 <= 90 * MINUTE_MS - january <= DRIFT_MS, parts
    assert 0 <= february - 60 * MINUTE_MS <= DRIFT_MS, parts
    assert (charge["billing_period"], charge["invoice_id"]) == ("2026-01-01", renewal["id"])
    assert [line["amount"] for line in world.lines(first)] == [4_900]
    assert sorted(line["amount"] for line in world.lines(renewal)) == [
        charge["amount_cents"], 4_900,
    ]  # fmt: skip
    assert (renewal["status"], renewal["amount_paid"]) == ("paid", 4_900 + charge["amount_cents"])
    assert charge["amount_cents"] == await cost_cents(database_url, "2026-01-01")
    assert charge["quantity"] in {29, 30}, "29 whole minutes when the requests took some time"

    await world.pass_until(RENEWAL + timedelta(days=28, hours=3))
    last = world.invoices(customer_id)[-1]
    assert [line["amount"] for line in world.lines(last)] == [4_900], "60 minutes are included"
    assert [each["id"] for each in await world.charged("acme", "invoiced")] == [charge["id"]]
    await assert_books_are_right("--database-url", database_url)


async def test_what_is_reported_after_the_draft_was_finalized_rides_the_next_renewal(
    world: World, database_url: str
) -> None:
    """An agent cut off over the boundary reports hours late: the next charge, one month later."""
    acme = await world.customer("acme", "Acme", plan="free", contract=CONTRACT)
    customer_id = (await world.subscribe(acme, "starter"))["stripe_customer_id"]
    await world.pass_until(RENEWAL - timedelta(minutes=90))
    task_id = (await acme.start(1)).json()["task_id"]
    await world.pass_minutes(70)
    await acme.heartbeat(task_id, 70 * MINUTE_MS)
    await world.pass_until(RENEWAL + timedelta(minutes=30))
    (first,) = await world.charged("acme", "pushed")
    await world.pass_until(RENEWAL + timedelta(hours=2))
    await acme.finish(task_id, 210 * MINUTE_MS)
    second = await newest_of(world, 2)
    await world.pass_until(RENEWAL + timedelta(days=28, minutes=1))
    third = await newest_of(world, 3)
    await world.pass_until(RENEWAL + timedelta(days=28, hours=4))
    _, renewal, following = world.invoices(customer_id)
    ours = [line["amount"] for line in world.lines(following) if line["amount"] != 4_900]

    assert first["invoice_id"] == renewal["id"]
    assert (second["billing_period"], second["seq"]) == ("2026-01-01", 2)
    owed = await cost_cents(database_url, "2026-01-01")
    assert first["amount_cents"] + second["amount_cents"] == owed
    assert sorted(ours) == sorted([second["amount_cents"], third["amount_cents"]])
    assert len(await world.charged("acme", "invoiced")) == 3
    await assert_books_are_right("--database-url", database_url)


async def newest_of(world: World, count: int) -> Any:
    """Return acme's newest charge when there are so many and all are at Stripe."""

    async def are_there() -> bool:
        return len(await world.charged("acme", "pushed", "invoiced")) == count

    await until(f"there are no {count} charges", are_there)
    return (await world.charged("acme", "pushed", "invoiced"))[0]


async def parts_of(url: str, task_id: str) -> dict[str, int]:
    """Return the milliseconds of a task in the ledger, by billing period."""
    rows = await query(
        url,
        "SELECT billing_period, sum(quantity_ms)::bigint AS ms FROM usage_records "
        "WHERE task_id = $1 GROUP BY 1",
        task_id,
    )
    return {row["billing_period"]: row["ms"] for row in rows}


async def cost_cents(url: str, label: str) -> int:
    """Return what the rows of a period cost, rounded half-up once."""
    (row,) = await query(
        url,
        "SELECT round(100 * sum(total_cost))::bigint AS cents FROM usage_records "
        "WHERE billing_period = $1",
        label,
    )
    cents: int = row["cents"]
    return cents
