"""The ledger as CSV, a page at a time, safe to open in a spreadsheet.

Text that a spreadsheet would run as a formula gets an apostrophe in front; numbers do not.
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Iterable
from typing import Final

from meterd.core.money import MICRO
from meterd.core.units import rfc3339
from meterd.core.usage import UsageRow
from meterd.ports.usage import RowFilter, UsageBooks


CSV: Final = "text/csv"

PAGE_ROWS: Final = 1_000
"""Rows read at once: what an export holds in memory."""

COLUMNS: Final = (
    "id",
    "timestamp",
    "billing_period",
    "resource_type",
    "kind",
    "source",
    "quantity",
    "quantity_ms",
    "unit_cost",
    "total_cost",
    "task_id",
    "agent_id",
    "user_id",
    "terms_seq",
    "metadata",
)

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


def guarded(text: str | None) -> str:
    """Return text that no spreadsheet takes for a formula."""
    if text is None:
        return ""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def csv_text(rows: Iterable[UsageRow], *, has_header: bool = False) -> str:
    """Return rows as RFC 4180 lines."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    if has_header:
        writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(
            (
                row.id,
                rfc3339(row.at_ms),
                row.billing_period,
                row.resource.value,
                row.kind.value,
                row.source.value,
                row.quantity,
                row.quantity_ms,
                str(row.unit_cost_usd.quantize(MICRO)),
                str(row.total_cost_usd.quantize(MICRO)),
                guarded(row.task_id),
                guarded(row.agent_id),
                guarded(row.user_id),
                row.terms_seq,
                guarded(row.metadata_json),
            )
        )
    return out.getvalue()


async def csv_stream(
    books: UsageBooks,
    organization_id: str,
    chosen: RowFilter,
    *,
    after: tuple[int, str] | None,
    limit: int | None,
) -> AsyncIterator[str]:
    """Yield the header, then the rows, newest first, until there are no more or the limit is met.

    Errors: StoreUnavailableError, in the middle: the connection is then cut, so that what arrived
    is known to be incomplete.
    """
    yield csv_text((), has_header=True)
    left = limit
    while left is None or left > 0:
        size = PAGE_ROWS if left is None else min(PAGE_ROWS, left)
        rows = await books.usage_rows(organization_id, chosen, after=after, limit=size)
        if rows:
            yield csv_text(rows)
        if len(rows) < size:
            return
        after = (rows[-1].at_ms, rows[-1].id)
        left = None if left is None else left - len(rows)
