"""Ledger rows: how time becomes whole minutes and money.

Rule 1: a row's `quantity` is the whole minutes it adds to the period's running total, so rows
        telescope: their sum is floor(total / 1 minute) however the time was cut.
Rule 2: rows are cut at the included/overage line, so each has one price band (`kind`).
Rule 3: a credit is the same with negative time; it un-bills the band the total moves back through.
Rule 4: rows are never changed. A row carries the running total before it, so the rows of a period
        form a chain that the audit can walk.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from decimal import Decimal

import attrs

from meterd.core.ids import fact_id
from meterd.core.money import ZERO, cost_usd, total_usd
from meterd.core.period import Period
from meterd.core.plan import Limits, Resource, Terms
from meterd.core.units import MINUTE_MS, minutes_added


ROW_MINUTES_MAX = 9_999
"""Minutes one row may hold: keeps quantity x unit cost inside `numeric(10,6)`."""

ROW_MS_MAX = ROW_MINUTES_MAX * MINUTE_MS


class Kind(enum.Enum):
    """The price band of a row."""

    INCLUDED = "included"
    OVERAGE = "overage"
    FREE_GRACE = "free_grace"
    METERED = "metered"


class Source(enum.Enum):
    """Where a row came from."""

    TASK = "task"
    ADJUSTMENT = "adjustment"
    EVENT = "event"
    VOID = "void"


@attrs.frozen(kw_only=True)
class UsageRow:
    """One row of the append-only ledger (`usage_records`)."""

    id: str
    resource: Resource
    kind: Kind
    source: Source
    quantity: int
    """Whole units (minutes) this row adds to the period's total; negative for a credit."""
    quantity_ms: int
    recorded_before_ms: int
    """The period's recorded total before this row."""
    unit_cost_usd: Decimal
    total_cost_usd: Decimal
    billing_period: str
    at_ms: int
    """The last instant the row covers."""
    task_id: str | None = None
    agent_id: str | None = None
    user_id: str | None = None
    terms_seq: int
    seq: int
    metadata_json: str = "{}"


@attrs.frozen(kw_only=True)
class Origin:
    """What the rows of one booking have in common."""

    organization_id: str
    seq: int
    source: Source
    at_ms: int
    task_id: str | None = None
    agent_id: str | None = None
    user_id: str | None = None
    metadata_json: str = "{}"


def row_id(origin: Origin, ordinal: int) -> str:
    """Return the id of a fact's row; `ordinal` is the number of rows it already has."""
    return fact_id("rec", origin.at_ms, origin.organization_id, origin.seq, ordinal)


def kind_past_allowance(limits: Limits) -> Kind:
    """Return the price band of agent time past the included minutes."""
    return Kind.OVERAGE if limits.grace_billed else Kind.FREE_GRACE


def pieces(before_ms: int, duration_ms: int, line_ms: int) -> Iterator[tuple[int, bool]]:
    """Cut time at the included/overage line and into rows of at most 9,999 minutes.

    Yields (duration, is past the line), in order; durations keep the sign of `duration_ms`.
    """
    position_ms, left_ms = before_ms, duration_ms
    while left_ms > 0:
        past = position_ms >= line_ms
        step_ms = min(left_ms, ROW_MS_MAX, left_ms if past else line_ms - position_ms)
        yield step_ms, past
        position_ms += step_ms
        left_ms -= step_ms
    while left_ms < 0:
        past = position_ms > line_ms
        step_ms = max(left_ms, -ROW_MS_MAX, line_ms - position_ms if past else left_ms)
        yield step_ms, past
        position_ms += step_ms
        left_ms -= step_ms


def book_agent_time(
    period: Period, terms: Terms, duration_ms: int, origin: Origin, *, ordinal: int
) -> tuple[Period, tuple[UsageRow, ...]]:
    """Return the period with the time recorded, and the ledger rows that record it.

    `duration_ms` may be negative (a credit) but never takes the total below zero. `ordinal` is
    the number of rows the same fact already has: with organization and seq it makes the ids.
    """
    assert period.recorded_ms + duration_ms >= 0, (period, duration_ms)
    limits = terms.limits
    past_kind = kind_past_allowance(limits)
    past_rate = limits.overage_usd_per_minute if past_kind is Kind.OVERAGE else ZERO
    rows: list[UsageRow] = []
    position_ms = period.recorded_ms
    for piece_ms, past in pieces(position_ms, duration_ms, limits.included_ms):
        after_ms = position_ms + piece_ms
        quantity = minutes_added(position_ms, after_ms)
        rate = past_rate if past else ZERO
        rows.append(
            UsageRow(
                id=row_id(origin, ordinal + len(rows)),
                resource=Resource.AGENT_MINUTE,
                kind=past_kind if past else Kind.INCLUDED,
                source=origin.source,
                quantity=quantity,
                quantity_ms=piece_ms,
                recorded_before_ms=position_ms,
                unit_cost_usd=rate,
                total_cost_usd=cost_usd(quantity, rate),
                billing_period=period.label,
                at_ms=origin.at_ms,
                task_id=origin.task_id,
                agent_id=origin.agent_id,
                user_id=origin.user_id,
                terms_seq=terms.seq,
                seq=origin.seq,
                metadata_json=origin.metadata_json,
            )
        )
        position_ms = after_ms
    overage = [row for row in rows if row.kind is Kind.OVERAGE]
    booked = attrs.evolve(
        period,
        recorded_ms=position_ms,
        overage_minutes=period.overage_minutes + sum(row.quantity for row in overage),
        overage_usd=total_usd((period.overage_usd, *(row.total_cost_usd for row in overage))),
        total_usd=total_usd((period.total_usd, *(row.total_cost_usd for row in rows))),
    )
    return booked, tuple(rows)
