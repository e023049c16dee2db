"""The ledger as its owner reads it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Protocol

import attrs

from meterd.core.period import Period
from meterd.core.plan import Resource, Terms
from meterd.core.usage import Kind, UsageRow


@attrs.frozen(kw_only=True)
class RowFilter:
    """Which ledger rows are asked for; what is `None` does not matter."""

    billing_period: str | None = None
    task_id: str | None = None
    agent_id: str | None = None
    resource: Resource | None = None


@attrs.frozen(kw_only=True)
class DaySum:
    """The ledger of one UTC day, of one price: what `usage_days` says."""

    day_start_ms: int
    billing_period: str
    resource: Resource
    kind: Kind
    unit_cost_usd: Decimal
    quantity: int
    quantity_ms: int
    cost_usd: Decimal


class UsageBooks(Protocol):
    """The ledger as its owner reads it."""

    async def usage_rows(
        self, organization_id: str, chosen: RowFilter, *, after: tuple[int, str] | None, limit: int
    ) -> Sequence[UsageRow]:
        """Return rows, newest first; `after` is the (at_ms, id) seen last."""
        ...

    async def usage_days(self, organization_id: str, *, since_ms: int) -> Sequence[DaySum]:
        """Return the sums of the UTC days from the one that contains an instant on."""
        ...

    async def adjustment(self, organization_id: str, entry_id: str) -> Sequence[UsageRow] | None:
        """Return the rows of the adjustment with this audit entry; None: there is none."""
        ...

    async def usage_of_period(self, organization_id: str, label: str) -> Sequence[DaySum]:
        """Return the sums of the days of one billing period."""
        ...

    async def periods(
        self, organization_id: str, *, before_ms: int | None, limit: int
    ) -> Sequence[tuple[Period, Terms]]:
        """Return periods with their terms, newest first, that start before an instant."""
        ...
