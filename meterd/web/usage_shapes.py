"""What answers about usage say: the dashboard, daily series, periods and the invoice so far."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated

import attrs
import msgspec
from msgspec import Meta

from meterd.core.forecast import Burn, Forecast, forecast
from meterd.core.money import MICRO, ZERO, round_to_cents, total_usd
from meterd.core.period import Period
from meterd.core.plan import Limits, Resource, Terms
from meterd.core.quota import QuotaView, stop_line_ms, usage_state
from meterd.core.units import DAY_MS, day_start_ms, minutes_added, rfc3339, whole_minutes
from meterd.core.usage import Kind
from meterd.ports.usage import DaySum
from meterd.web.shapes import Instant, Quota, quota_object


PERIOD_CLOSED = "period_closed"
"""Why nothing may start in a period that is over."""

Usd = Annotated[str, Meta(description="US dollars, as text.")]


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What the period costs so far; the parts add up to the total."""

    base_usd: Usd
    overage_usd: Usd
    metered_usd: Annotated[str, Meta(description="Calls and connection minutes, when priced.")]
    total_usd: Usd


class Calls(msgspec.Struct, frozen=True):
    """API calls of the period."""

    used: int


class WebsocketMinutes(msgspec.Struct, frozen=True):
    """Connection time of the period, in whole minutes and in milliseconds."""

    used: int
    used_ms: int


class ForecastObject(msgspec.Struct, frozen=True, kw_only=True):
    """What the period will come to, if use goes on as in the last seven days."""

    agent_minutes: int
    overage_usd: Usd
    exhausted_at: Annotated[
        str | None, Meta(description="When work would stop; null: not within the period.")
    ]


class Usage(Quota, frozen=True, kw_only=True):
    """The quota object with what the period costs and will come to."""

    costs: Costs
    api_calls: Calls
    websocket_minutes: WebsocketMinutes
    forecast: ForecastObject
    period_elapsed_percent: Annotated[int, Meta(description="Whole percent of the period.")]


class DayObject(msgspec.Struct, frozen=True, kw_only=True):
    """One resource on one UTC day."""

    day: Annotated[str, Meta(description="YYYY-MM-DD, UTC.")]
    resource_type: str
    quantity: Annotated[int, Meta(description="Whole minutes or calls.")]
    quantity_ms: int
    overage: Annotated[int, Meta(description="The part of it that is billed overage.")]
    cost_usd: Annotated[str, Meta(description="Exact, six decimals.")]


class PeriodMinutes(msgspec.Struct, frozen=True, kw_only=True):
    """Agent time of a period."""

    used: int
    limit: int
    used_ms: int
    overage: int


class PeriodObject(msgspec.Struct, frozen=True, kw_only=True):
    """A billing period with its totals."""

    billing_period: str
    period_start: Instant
    period_end: Instant
    closed: bool
    plan: str
    agent_minutes: PeriodMinutes
    api_calls: Calls
    websocket_minutes: WebsocketMinutes
    costs: Costs


class InvoiceLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an invoice."""

    description: str
    resource_type: str | None
    kind: Annotated[str, Meta(description="base, or the price band of the ledger rows.")]
    quantity: int
    unit_cost: str
    amount_usd: Annotated[str, Meta(description="Exact, six decimals; only the sum is rounded.")]


class InvoicePreview(msgspec.Struct, frozen=True, kw_only=True):
    """What the open period would be billed if it ended now."""

    organization_id: str
    plan: str
    billing_period: str
    period_start: Instant
    period_end: Instant
    currency: str
    lines: list[InvoiceLine]
    total_usd: Usd
    as_of: Instant


def costs_of(period: Period, limits: Limits) -> Costs:
    """Return what a period costs: each part is rounded so that the sum is the rounded sum."""
    usage, overage = round_to_cents(period.total_usd), round_to_cents(period.overage_usd)
    base = round_to_cents(limits.base_price_usd)
    return Costs(
        base_usd=str(base),
        overage_usd=str(overage),
        metered_usd=str(usage - overage),
        total_usd=str(base + usage),
    )


def usage_object(view: QuotaView, period: Period, terms: Terms, expected: Forecast) -> Usage:
    """Return the dashboard of an open period."""
    elapsed_ms = min(view.as_of_ms, period.end_ms) - period.start_ms
    exhausted_ms = expected.exhausted_at_ms
    quota = quota_object(view)
    return Usage(
        **{name: getattr(quota, name) for name in Quota.__struct_fields__},
        costs=costs_of(period, terms.limits),
        api_calls=Calls(period.api_calls),
        websocket_minutes=_connection_time(period),
        forecast=ForecastObject(
            agent_minutes=expected.agent_minutes,
            overage_usd=str(round_to_cents(expected.overage_usd)),
            exhausted_at=None if exhausted_ms is None else rfc3339(exhausted_ms),
        ),
        period_elapsed_percent=max(0, elapsed_ms * 100 // (period.end_ms - period.start_ms)),
    )


def closed_usage_object(
    organization_id: str, period: Period, terms: Terms, *, now_ms: int
) -> Usage:
    """Return the dashboard of a period that is over: nothing may start in it any more."""
    limits = terms.limits
    view = QuotaView(
        organization_id=organization_id,
        plan=terms.plan,
        state=usage_state(limits, period.used_ms),
        denial=None,
        hold=None,
        label=period.label,
        period_start_ms=period.start_ms,
        period_end_ms=period.end_ms,
        used_ms=period.used_ms,
        projected_ms=period.used_ms,
        included_minutes=limits.included_minutes,
        hard_limit_ms=limits.hard_limit_ms,
        overage_minutes=period.overage_minutes,
        overage_usd=period.overage_usd,
        agents_active=0,
        agents_limit=limits.agents,
        as_of_ms=now_ms,
    )
    reached = Forecast(used_ms=period.used_ms, overage_usd=period.overage_usd, exhausted_at_ms=None)
    shown = usage_object(view, period, terms, reached)
    return msgspec.structs.replace(shown, allowed=False, code=PERIOD_CLOSED)


def expected_end(view: QuotaView, period: Period, terms: Terms, days: Sequence[DaySum]) -> Forecast:
    """Return what an open period comes to; `days` are those of its burn window."""
    now_ms = view.as_of_ms
    since_ms = burn_since_ms(period, now_ms)
    if since_ms == period.start_ms:
        burnt_ms = period.used_ms
    else:
        recorded_ms = sum(day.quantity_ms for day in days if day.resource is Resource.AGENT_MINUTE)
        burnt_ms = max(0, recorded_ms + period.used_ms - period.recorded_ms)
    return forecast(
        terms.limits,
        used_ms=period.used_ms,
        overage_usd=period.overage_usd,
        stop_ms=stop_line_ms(terms.limits, period),
        burn=Burn(used_ms=burnt_ms, window_ms=max(0, now_ms - since_ms)),
        now_ms=now_ms,
        end_ms=period.end_ms,
    )


def burn_since_ms(period: Period, now_ms: int) -> int:
    """Return where the mean burn begins: six UTC days before today, or with the period."""
    return max(period.start_ms, day_start_ms(now_ms) - 6 * DAY_MS)


def day_objects(
    sums: Sequence[DaySum], period: Period, *, days: int, now_ms: int
) -> list[DayObject]:
    """Return the series of the last days, today last, every resource on every day.

    Time that agents have reported and that is not in the ledger yet is today's.
    """
    today_ms = day_start_ms(now_ms)
    first_ms = today_ms - (days - 1) * DAY_MS
    agent = [each for each in sums if each.resource is Resource.AGENT_MINUTE]
    recorded_ms = sum(e.quantity_ms for e in agent if e.billing_period == period.label)
    pending_ms = max(0, period.used_ms - recorded_ms)
    pending = minutes_added(recorded_ms, recorded_ms + pending_ms)
    found: dict[tuple[int, Resource], list[DaySum]] = {}
    for each in sums:
        found.setdefault((each.day_start_ms, each.resource), []).append(each)
    shown = []
    for day_ms in range(first_ms, today_ms + 1, DAY_MS):
        for resource in Resource:
            here = found.get((day_ms, resource), [])
            is_now = day_ms == today_ms and resource is Resource.AGENT_MINUTE
            shown.append(
                DayObject(
                    day=rfc3339(day_ms)[:10],
                    resource_type=resource.value,
                    quantity=sum(e.quantity for e in here) + (pending if is_now else 0),
                    quantity_ms=sum(e.quantity_ms for e in here) + (pending_ms if is_now else 0),
                    overage=sum(e.quantity for e in here if e.kind is Kind.OVERAGE),
                    cost_usd=_exact(total_usd(tuple(e.cost_usd for e in here))),
                )
            )
    return shown


def period_object(period: Period, terms: Terms) -> PeriodObject:
    """Return a period with its totals."""
    return PeriodObject(
        billing_period=period.label,
        period_start=rfc3339(period.start_ms),
        period_end=rfc3339(period.end_ms),
        closed=period.closed,
        plan=terms.plan.value,
        agent_minutes=PeriodMinutes(
            used=whole_minutes(period.used_ms),
            limit=terms.limits.included_minutes,
            used_ms=period.used_ms,
            overage=period.overage_minutes,
        ),
        api_calls=Calls(period.api_calls),
        websocket_minutes=_connection_time(period),
        costs=costs_of(period, terms.limits),
    )


def _connection_time(period: Period) -> WebsocketMinutes:
    return WebsocketMinutes(whole_minutes(period.websocket_ms), period.websocket_ms)


@attrs.frozen
class _Price:
    resource: str
    kind: str
    unit_cost_usd: Decimal


def invoice_preview(
    view: QuotaView, period: Period, terms: Terms, sums: Sequence[DaySum]
) -> InvoicePreview:
    """Return what the period would be billed now: the base price, then a line a price."""
    quantities: dict[_Price, int] = {}
    for each in sums:
        price = _Price(each.resource.value, each.kind.value, each.unit_cost_usd)
        quantities[price] = quantities.get(price, 0) + each.quantity
    base = terms.limits.base_price_usd
    lines = [
        InvoiceLine(
            description=f"Plan {terms.plan.value}",
            resource_type=None,
            kind="base",
            quantity=1,
            unit_cost=_exact(base),
            amount_usd=_exact(base),
        )
    ]
    amounts = [ZERO]
    for price in sorted(quantities, key=lambda p: (p.resource, p.kind, p.unit_cost_usd)):
        amount = price.unit_cost_usd * quantities[price]
        amounts.append(amount)
        lines.append(
            InvoiceLine(
                description=_described(price),
                resource_type=price.resource,
                kind=price.kind,
                quantity=quantities[price],
                unit_cost=_exact(price.unit_cost_usd),
                amount_usd=_exact(amount),
            )
        )
    usage = total_usd(tuple(amounts))
    return InvoicePreview(
        organization_id=view.organization_id,
        plan=terms.plan.value,
        billing_period=period.label,
        period_start=rfc3339(period.start_ms),
        period_end=rfc3339(period.end_ms),
        currency="usd",
        lines=lines,
        total_usd=str(round_to_cents(base) + round_to_cents(usage)),
        as_of=rfc3339(view.as_of_ms),
    )


def _described(price: _Price) -> str:
    what = price.resource.replace("_", " ").replace("api", "API") + "s"
    return f"{what.capitalize() if what[0] != 'A' else what}, {price.kind.replace('_', ' ')}"


def _exact(amount_usd: Decimal) -> str:
    return str(amount_usd.quantize(MICRO))
