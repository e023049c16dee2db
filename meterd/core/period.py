"""Billing periods: stored, half-open, without gap or overlap.

A period ends by the clock. Without a subscription it is the UTC calendar month; with one it
follows the subscription item, monthly steps from an anchor whose day is clipped to the month
(31 January, 28 February, 31 March), never past the item's end.
Counters belong to exactly one period; a closed period never reopens, but time that is reported
late is still booked into the period in which it ran.
"""

from __future__ import annotations

import calendar
from collections.abc import Collection
from datetime import UTC, datetime
from decimal import Decimal

import attrs

from meterd.core.money import ZERO
from meterd.core.units import from_datetime, rfc3339, to_datetime


MONTHS_PER_YEAR = 12


@attrs.frozen(kw_only=True, slots=False)  # made per heartbeat, see Task
class Period:
    """One billing period and its agent-minute counters, as of its last fact."""

    start_ms: int
    end_ms: int
    label: str
    """`billing_period`: `YYYY-MM` of the start, finer when that is taken; assigned once."""
    terms_seq: int
    """The terms in force, or at its end once it is closed."""
    closed: bool = False
    used_ms: int = 0
    """Agent time reported and billable: what limits look at."""
    recorded_ms: int = 0
    """Agent time already in ledger rows; never more than `used_ms`."""
    overage_minutes: int = 0
    """The sum of `quantity` over the period's overage rows."""
    overage_usd: Decimal = ZERO
    """The exact cost of the overage rows."""
    total_usd: Decimal = ZERO
    """The exact cost of every row, whatever its resource type."""
    api_calls: int = 0
    websocket_ms: int = 0
    notified_percents: frozenset[int] = frozenset()
    """Thresholds already announced: each once per period, until the terms change."""


def with_used_ms(period: Period, used_ms: int) -> Period:
    """Return the period with another used time: `attrs.evolve` in a quarter of its time."""
    changed = object.__new__(Period)
    values = changed.__dict__
    values.update(period.__dict__)
    values["used_ms"] = used_ms
    return changed


def month_start_ms(instant_ms: int) -> int:
    """Return the start of the UTC calendar month that contains the instant."""
    day = to_datetime(instant_ms)
    return from_datetime(datetime(day.year, day.month, 1, tzinfo=UTC))


def add_months(anchor_ms: int, months: int) -> int:
    """Return the anchor moved by whole months, its day clipped to the length of the month.

    Always counted from the anchor itself: stepping from the clipped day would lose the 31st.
    """
    anchor = to_datetime(anchor_ms)
    index = anchor.year * MONTHS_PER_YEAR + (anchor.month - 1) + months
    year, month = divmod(index, MONTHS_PER_YEAR)
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return from_datetime(anchor.replace(year=year, month=month + 1, day=day))


def next_month_start_ms(instant_ms: int) -> int:
    """Return the first instant after the UTC calendar month that contains the instant."""
    return add_months(month_start_ms(instant_ms), 1)


def label_for(start_ms: int, taken: Collection[str]) -> str:
    """Return the `billing_period` of a period: the month, the day or the second of its start."""
    full = rfc3339(start_ms)
    for label in (full[:7], full[:10], rfc3339(start_ms - start_ms % 1000)):
        if label not in taken:
            return label
    return full


def calendar_period(instant_ms: int, *, terms_seq: int, taken: Collection[str] = ()) -> Period:
    """Return the empty calendar-month period that contains the instant."""
    start_ms = month_start_ms(instant_ms)
    return Period(
        start_ms=start_ms,
        end_ms=next_month_start_ms(start_ms),
        label=label_for(start_ms, taken),
        terms_seq=terms_seq,
    )
