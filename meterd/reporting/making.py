"""From the figures of a day to its report: what is counted, who is listed, in which order.

Customers are added one by one, so that ten thousand of them never have to be in one answer of the
database. Lists are ordered by what they are worth, then by id: the same figures, the same report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

from meterd.core.forecast import forecast
from meterd.core.money import ZERO, round_to_cents
from meterd.core.outlook import (
    is_low,
    low_days,
    outgrown,
    pro_rata_percent,
)
from meterd.core.plan import Catalogue, Tier
from meterd.core.quota import stop_line_from_ms
from meterd.core.revenue import (
    NOTHING,
    Customer,
    apportioned,
    dollars,
    movement,
    movements,
    whole_cents,
)
from meterd.core.subscription import USD
from meterd.core.units import DAY_MS, MINUTE_MS, rfc3339, whole_minutes
from meterd.reporting.figures import (
    HISTORY_DAYS,
    AtRisk,
    Candidate,
    CustomerDay,
    DayFacts,
    LateUpgrade,
    Moved,
    Mover,
    OveragePart,
    Report,
    RevenuePart,
    Troubled,
    UsageLine,
)
from meterd.reporting.sums import RevenueSums


LATE_UPGRADE_PERCENT = 25
"""An upgrade with less of the period left than this frees more than it pays for."""

TENTH = Decimal("0.1")
WEEK = 7


class Making:
    """A report in the making: add every customer, then `finish`."""

    def __init__(self, day_ms: int, catalogue: Catalogue, *, is_whole: bool = True) -> None:
        assert day_ms % DAY_MS == 0, day_ms
        self.day = rfc3339(day_ms)[:10]
        self.end_ms = day_ms + DAY_MS
        self._catalogue = catalogue
        self._is_whole = is_whole
        self._customers = 0
        self._revenue: dict[str, Customer] = {}
        self._names: dict[str, str] = {}
        self._sums = RevenueSums()
        self._minutes: dict[Tier, list[int]] = {tier: [] for tier in Tier}
        self._daily_ms: dict[Tier, list[int]] = {tier: [0] * HISTORY_DAYS for tier in Tier}
        self._open_overage: list[Decimal] = []
        self._at_risk: list[AtRisk] = []
        self._candidates: list[Candidate] = []
        self._late: list[LateUpgrade] = []
        self._troubled: list[Troubled] = []

    def add(self, customer: CustomerDay) -> None:
        """Count one customer."""
        self._customers += 1
        self._sums.add(
            customer.tier,
            customer.revenue,
            is_held=customer.is_held,
            is_late=customer.past_due_since_ms is not None,
            is_trialing=customer.trialing,
        )
        if customer.revenue is not None and customer.revenue.has_paid:
            self._revenue[customer.organization_id] = customer.revenue
            self._names[customer.organization_id] = customer.name
        self._minutes[customer.tier].append(whole_minutes(customer.used_ms))
        days = self._daily_ms[customer.tier]
        for index, used_ms in enumerate(customer.daily_ms):
            days[index] += used_ms
        if customer.overage_usd and customer.period_end_ms > self.end_ms:  # else it is billed
            self._open_overage.append(round_to_cents(customer.overage_usd))
        self._judge(customer)
        is_past_due = customer.revenue is not None and customer.revenue.status == "past_due"
        if customer.is_held or is_past_due or customer.past_due_since_ms is not None:
            self._troubled.append(_troubled(customer))

    def _judge(self, customer: CustomerDay) -> None:
        now = customer.allowance(self.end_ms)
        if customer.pays and not customer.is_held and is_low(now, customer.before):
            self._at_risk.append(_at_risk(customer, self.end_ms))
        burn = customer.burn(self.end_ms)
        if not customer.limits.unlimited and not customer.is_held:
            grown = outgrown(now, burn, now_ms=self.end_ms)
            next_tier = self._next_tier(customer)
            if grown is not None and next_tier is not None:
                price = self._price(next_tier)
                expected = forecast(
                    customer.limits,
                    used_ms=customer.used_ms,
                    overage_usd=customer.overage_usd,
                    stop_ms=stop_line_from_ms(
                        customer.limits, customer.used_ms, customer.overage_usd
                    ),
                    burn=burn,
                    now_ms=self.end_ms,
                    end_ms=max(self.end_ms, customer.period_end_ms),
                )
                self._candidates.append(
                    Candidate(
                        organization_id=customer.organization_id,
                        name=customer.name,
                        tier=customer.tier,
                        percent=grown.percent,
                        used_minutes=whole_minutes(customer.used_ms),
                        included_minutes=customer.limits.included_minutes,
                        reaches=_day(grown.warning_at_ms),
                        full_on=_day(grown.full_at_ms),
                        is_full=now.used_ms >= now.included_ms,
                        next_tier=next_tier,
                        next_price_usd=price,
                        extra_usd=None if price is None else price - _pays_now(customer),
                        overage_usd=round_to_cents(expected.overage_usd),
                    )
                )
        if customer.changed_at_ms is not None and customer.tier_before is not None:
            self._look_at_change(customer, customer.changed_at_ms, customer.tier_before)

    def _look_at_change(self, customer: CustomerDay, at_ms: int, before: Tier) -> None:
        length_ms = customer.period_end_ms - customer.period_start_ms
        left_ms = max(0, customer.period_end_ms - at_ms)
        if at_ms < customer.period_start_ms:  # renewed later that day: nothing is later than that
            if customer.before is None:
                return
            length_ms = customer.before.length_ms
            left_ms = customer.period_start_ms - at_ms
        is_larger = list(Tier).index(customer.tier) > list(Tier).index(before)
        if is_larger and left_ms * 100 < length_ms * LATE_UPGRADE_PERCENT:
            self._late.append(
                LateUpgrade(
                    organization_id=customer.organization_id,
                    name=customer.name,
                    before=before,
                    after=customer.tier,
                    left_percent=left_ms * 100 // length_ms,
                )
            )

    def _next_tier(self, customer: CustomerDay) -> Tier | None:
        """Return the cheapest larger plan that includes more than the customer has now."""
        larger = list(Tier)[list(Tier).index(customer.tier) + 1 :]
        for tier in larger:
            plan = self._catalogue.plans[tier]
            if plan.unlimited or plan.agent_minutes > customer.limits.included_minutes:
                return tier
        return None

    def _price(self, tier: Tier) -> Decimal | None:
        plan = self._catalogue.plans[tier]
        return None if plan.unlimited and not plan.price_usd else plan.price_usd

    def finish(
        self,
        facts: DayFacts,
        *,
        has_snapshot: bool,
        since: str | None,
        earlier: Mapping[str, Customer],
    ) -> Report:
        """Return the report; `earlier` are the customers of the snapshot of day `since`."""
        return Report(
            day=self.day,
            is_whole=self._is_whole,
            customers=self._customers,
            revenue=self._revenue_part(since, earlier) if has_snapshot else None,
            tiers=self._sums.tiers(),
            usage=tuple(self._usage(tier) for tier in Tier if self._minutes[tier]),
            overage=OveragePart(
                open_usd=sum(self._open_overage, ZERO),
                open_customers=len(self._open_overage),
                billed=facts.billed,
                month=self.day[:7],
            ),
            at_risk=tuple(
                sorted(self._at_risk, key=lambda each: (-(each.mrr_usd or 0), each.organization_id))
            ),
            candidates=tuple(
                sorted(self._candidates, key=lambda each: (-each.percent, each.organization_id))
            ),
            late_upgrades=tuple(sorted(self._late, key=lambda each: each.organization_id)),
            troubled=tuple(
                sorted(self._troubled, key=lambda each: (-each.mrr_usd, each.organization_id))
            ),
            facts=facts,
        )

    def _revenue_part(self, since: str | None, earlier: Mapping[str, Customer]) -> RevenuePart:
        now = {key: each for key, each in self._revenue.items() if each.currency == USD}
        then = {key: each for key, each in earlier.items() if each.currency == USD}
        before = whole_cents(sum((each.cents for each in then.values()), NOTHING))
        moved = movements(then, now) if since is not None else {}
        change = self._sums.total_cents - before
        shown = apportioned([each.cents for each in moved.values()], change)
        return RevenuePart(
            mrr_usd=self._sums.mrr_usd,
            contract_usd=self._sums.contract_usd,
            other_currencies=self._sums.other_currencies,
            unknown=self._sums.unknown,
            since=since,
            before_usd=None if since is None else dollars(before),
            movements={
                kind: Moved(usd=dollars(cents), customers=each.customers)
                for (kind, each), cents in zip(moved.items(), shown, strict=True)
            },
            movers=self._movers(then, now) if since is not None else (),
        )

    def _movers(
        self, then: Mapping[str, Customer], now: Mapping[str, Customer]
    ) -> tuple[Mover, ...]:
        found = [
            Mover(
                organization_id=organization_id,
                name=self._names.get(organization_id, organization_id),
                movement=kind,
                before_usd=_month_usd(then.get(organization_id)),
                after_usd=_month_usd(now.get(organization_id)),
            )
            for organization_id in then.keys() | now.keys()
            if (kind := movement(then.get(organization_id), now.get(organization_id))) is not None
        ]
        return tuple(sorted(found, key=lambda each: (-abs(each.change_usd), each.organization_id)))

    def _usage(self, tier: Tier) -> UsageLine:
        minutes = sorted(self._minutes[tier])
        daily = tuple(whole_minutes(used_ms) for used_ms in self._daily_ms[tier])
        return UsageLine(
            tier=tier,
            customers=len(minutes),
            mean=mean(minutes),
            median=median(minutes),
            p90=percentile(minutes, 90),
            top=minutes[-1],
            day_minutes=daily[-1],
            daily_minutes=daily,
        )


def mean(values: Sequence[int]) -> Decimal:
    """Return the mean, rounded half-up to a tenth."""
    return _tenths(Fraction(sum(values), len(values)))


def median(ordered: Sequence[int]) -> Decimal:
    """Return the median of ordered values, of an even number the mean of the middle two."""
    middle = len(ordered) // 2
    pair = ordered[middle : middle + 1] if len(ordered) % 2 else ordered[middle - 1 : middle + 1]
    return mean(pair)


def percentile(ordered: Sequence[int], percent: int) -> int:
    """Return the value that so many percent of ordered values do not exceed: nearest rank."""
    return ordered[max(0, math.ceil(Fraction(percent * len(ordered), 100)) - 1)]


def _tenths(value: Fraction) -> Decimal:
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    return exact.quantize(TENTH, rounding=ROUND_HALF_UP)


def _at_risk(customer: CustomerDay, end_ms: int) -> AtRisk:
    now = customer.allowance(end_ms)
    daily = customer.daily_ms
    return AtRisk(
        organization_id=customer.organization_id,
        name=customer.name,
        tier=customer.tier,
        used_minutes=whole_minutes(customer.used_ms),
        pro_rata_percent=pro_rata_percent(now) or 0,
        days=low_days(now, customer.before, daily),
        mrr_usd=customer.mrr_usd,
        last_week_minutes=sum(daily[-WEEK:]) // MINUTE_MS,
        week_before_minutes=sum(daily[-2 * WEEK : -WEEK]) // MINUTE_MS,
        daily_minutes=tuple(used_ms // MINUTE_MS for used_ms in daily[-2 * WEEK :]),
    )


def _pays_now(customer: CustomerDay) -> Decimal:
    """Return what a customer pays a month, discounts deducted; its plan's price if untold."""
    mrr_usd = customer.mrr_usd
    is_told = customer.revenue is not None and not customer.revenue.is_unknown
    return mrr_usd if is_told and mrr_usd is not None else customer.limits.base_price_usd


def _month_usd(customer: Customer | None) -> Decimal:
    return ZERO if customer is None else dollars(whole_cents(customer.cents))


def _troubled(customer: CustomerDay) -> Troubled:
    why = f"suspended ({customer.held_by})" if customer.is_held else "past due"
    since_ms = customer.past_due_since_ms
    return Troubled(
        organization_id=customer.organization_id,
        name=customer.name,
        tier=customer.tier,
        why=why,
        since=_day(since_ms),
        mrr_usd=customer.mrr_usd or ZERO,
    )


def _day(instant_ms: int | None) -> str | None:
    return None if instant_ms is None else rfc3339(instant_ms)[:10]
