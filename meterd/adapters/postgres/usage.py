"""The ledger as its owner reads it: `UsageBooks`.

Rule 1: a list names only the conditions that are asked for, so that PostgreSQL can always choose
the index that was made for them; it goes on where it stopped, by time and id.
Rule 2: whatever adds up reads the sums per day, never the ledger: a year of a large customer is
millions of rows and a few thousand sums.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import UTC, datetime, time
from typing import Any

import attrs

from meterd.adapters.postgres import records
from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.period import Period
from meterd.core.plan import Resource, Terms
from meterd.core.units import INSTANT_MS_MAX, from_datetime, to_datetime
from meterd.core.usage import Kind, UsageRow
from meterd.ports.usage import DaySum, RowFilter


@attrs.define(eq=False, slots=False)
class PostgresUsage:
    """`UsageBooks` on tables `usage_records`, `usage_days` and `subscription_usage`.

    Errors: every method StoreUnavailableError, StoreRejectedError. Source: queries/usage.sql.
    """

    pools: PostgresPools

    async def usage_rows(
        self, organization_id: str, chosen: RowFilter, *, after: tuple[int, str] | None, limit: int
    ) -> Sequence[UsageRow]:
        """Return at most `limit` rows, newest first; `after` is the (at_ms, id) seen last."""
        asked = {
            "billing_period": chosen.billing_period,
            "task_id": chosen.task_id,
            "agent_id": chosen.agent_id,
        }
        given = {column: value for column, value in asked.items() if value is not None}
        arguments: list[Any] = [organization_id, *given.values()]
        if after is not None:
            arguments += [to_datetime(after[0]), after[1]]
        text = _rows_statement(tuple(given), chosen.resource, is_continued=after is not None)

        async def work(connection: Connection) -> list[Any]:
            return list(await connection.fetch(text, *arguments, limit))

        found = await self.pools.read_of(organization_id, "list ledger rows", work)
        return [records.row_from(record) for record in found]

    async def adjustment(self, organization_id: str, entry_id: str) -> Sequence[UsageRow] | None:
        """Return the rows of the adjustment with this audit entry; None: there is none."""

        async def work(connection: Connection) -> list[Any]:
            text = statements("usage")["adjustment"]
            return list(await connection.fetch(text, organization_id, entry_id))

        found = await self.pools.read_of(organization_id, "find an adjustment", work)
        return [records.row_from(record) for record in found] or None

    async def usage_days(self, organization_id: str, *, since_ms: int) -> Sequence[DaySum]:
        """Return the sums of the UTC days from the one that contains an instant on."""
        return await self._sums("usage_days", organization_id, to_datetime(since_ms).date())

    async def usage_of_period(self, organization_id: str, label: str) -> Sequence[DaySum]:
        """Return the sums of the days of one billing period."""
        return await self._sums("usage_of_period", organization_id, label)

    async def _sums(self, name: str, organization_id: str, *arguments: Any) -> Sequence[DaySum]:
        async def work(connection: Connection) -> list[Any]:
            text = statements("usage")[name]
            return list(await connection.fetch(text, organization_id, *arguments))

        found = await self.pools.read_of(organization_id, "sum up usage", work)
        return [
            DaySum(
                day_start_ms=from_datetime(datetime.combine(record["day"], time(), UTC)),
                billing_period=record["billing_period"],
                resource=Resource(record["resource_type"]),
                kind=Kind(record["kind"]),
                unit_cost_usd=record["unit_cost"],
                quantity=record["quantity"],
                quantity_ms=record["quantity_ms"],
                cost_usd=record["cost"],
            )
            for record in found
        ]

    async def periods(
        self, organization_id: str, *, before_ms: int | None, limit: int
    ) -> Sequence[tuple[Period, Terms]]:
        """Return periods with their terms, newest first, that start before an instant."""
        before = to_datetime(INSTANT_MS_MAX if before_ms is None else before_ms)

        async def work(connection: Connection) -> list[Any]:
            text = statements("usage")["periods"]
            return list(await connection.fetch(text, organization_id, before, limit))

        found = await self.pools.read_of(organization_id, "list periods", work)
        return [
            (records.period_from(record["period"]), records.terms_from(record["terms"]))
            for record in found
        ]


@functools.cache
def _rows_statement(
    columns: tuple[str, ...], resource: Resource | None, *, is_continued: bool
) -> str:
    """Return the list with exactly these conditions; the limit is the last parameter.

    The resource is written out, because an index is for some of them only.
    """
    conditions = [f"{column} = ${number}" for number, column in enumerate(columns, start=2)]
    if resource is not None:
        conditions.append(f"resource_type = '{resource.value}'")
    count = 1 + len(columns)
    if is_continued:
        conditions.append(f'("timestamp", id) < (${count + 1}, ${count + 2})')
        count += 2
    more = "".join(f" AND {condition}" for condition in conditions)
    text = statements("usage")["rows"]
    return text.replace("/* conditions */", more).replace("/* limit */", f"${count + 1}")
