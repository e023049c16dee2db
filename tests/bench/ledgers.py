"""A year of a large customer, made with COPY: a ledger of any size whose books are right.

The organization must exist and be nowhere in memory. It gets a closed calendar month for each of
the last months, and minute after minute of agents' work in them, some API calls in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg

from meterd.core.ids import fact_id
from meterd.core.period import add_months, month_start_ms
from meterd.core.units import MINUTE_MS, from_datetime, to_datetime


MONTHS = 12
AGENTS = 1_000
CALL_EVERY = 10
"""One row in so many is an event: a call."""

COLUMNS = (
    "id",
    "organization_id",
    "user_id",
    "resource_type",
    "quantity",
    "unit_cost",
    "total_cost",
    "metadata",
    "timestamp",
    "billing_period",
    "kind",
    "source",
    "quantity_ms",
    "recorded_before_ms",
    "agent_id",
    "terms_seq",
    "seq",
)
NOTHING = Decimal(0)


def month_rows(
    organization_id: str, label: str, start: datetime, length: timedelta, count: int
) -> Iterator[tuple[Any, ...]]:
    """Yield a month's rows, evenly spread; each is a minute of an agent, or a call."""
    minutes = 0
    for number in range(count):
        at = start + length * number / count
        at = at.replace(microsecond=at.microsecond // 1_000 * 1_000)
        is_call = number % CALL_EVERY == 0
        yield (
            f"rec_{label}_{number:012d}",
            organization_id,
            f"user-{number % 97}",
            "api_call" if is_call else "agent_minute",
            1,
            NOTHING,
            NOTHING,
            '{"job":"nightly"}',
            at,
            label,
            "metered" if is_call else "included",
            "event" if is_call else "adjustment",
            0 if is_call else MINUTE_MS,
            0 if is_call else minutes * MINUTE_MS,
            None if is_call else f"agent-{number % AGENTS}",
            1,
            1,
        )
        minutes += not is_call


async def _fill(url: str, organization_id: str, rows: int, now: datetime) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute("SET synchronous_commit = off")
        open_ms = month_start_ms(from_datetime(now))
        per_month = rows // MONTHS
        for back in range(MONTHS - 1, -1, -1):
            start_ms = add_months(open_ms, -back)
            start, label = to_datetime(start_ms), to_datetime(start_ms).strftime("%Y-%m")
            end = to_datetime(add_months(start_ms, 1))
            if back:
                await connection.execute(
                    "INSERT INTO subscription_usage (id, organization_id, billing_period, "
                    "period_start, period_end, closed, plan_tier, terms_seq, agent_minutes_limit, "
                    "last_updated) SELECT $1, $2, $3, $4, $5, true, plan_tier, terms_seq, "
                    "agent_minutes_limit, now() FROM subscription_usage "
                    "WHERE organization_id = $2 LIMIT 1",
                    fact_id("per", start_ms, organization_id, start_ms),
                    organization_id,
                    label,
                    start,
                    end,
                )
            length = min(end, now) - start
            await connection.copy_records_to_table(
                "usage_records",
                records=month_rows(organization_id, label, start, length, per_month),
                columns=COLUMNS,
            )
            calls = -(-per_month // CALL_EVERY)
            minutes = per_month - calls
            await connection.execute(
                "UPDATE subscription_usage SET used_ms = $3::bigint * 60000, "
                "recorded_ms = $3::bigint * 60000, agent_minutes_used = $3::int, "
                "api_calls_used = $4, seq = 1 WHERE organization_id = $1 AND billing_period = $2",
                organization_id,
                label,
                minutes,
                calls,
            )
        await connection.execute(
            "UPDATE organization_positions SET seq = 1 WHERE organization_id = $1", organization_id
        )
        await connection.execute(
            "INSERT INTO usage_events SELECT organization_id, id, 'bench', 'bench', 1, id, 1 "
            "FROM usage_records WHERE organization_id = $1 AND source = 'event'",
            organization_id,
            timeout=3_600,
        )
        await connection.execute(
            "INSERT INTO usage_days SELECT organization_id, (\"timestamp\" AT TIME ZONE 'UTC')"
            "::date, billing_period, resource_type, kind, unit_cost, sum(quantity), "
            "sum(quantity_ms), sum(total_cost) FROM usage_records WHERE organization_id = $1 "
            "GROUP BY 1, 2, 3, 4, 5, 6",
            organization_id,
            timeout=3_600,
        )
        await connection.execute("VACUUM ANALYZE usage_records", timeout=3_600)
        await connection.execute("VACUUM ANALYZE usage_events", timeout=3_600)
        await connection.execute("CHECKPOINT", timeout=3_600)
    finally:
        await connection.close(timeout=10)


def fill(url: str, organization_id: str, rows: int, *, now: datetime | None = None) -> None:
    """Give an organization a ledger of about so many rows; nobody may have it in memory.

    Its last row is about `now`, a minute ago when nothing is given.
    """
    now = datetime.now(UTC) - timedelta(minutes=1) if now is None else now
    asyncio.run(_fill(url, organization_id, rows, now))
