"""From the figures of a day to its report: what is counted, who is listed, in which order.

Customers are added one by one, so that ten thousand of them never have to be in one answer of the
database. Lists are ordered by what they are worth, then by id: the same figures, the same report.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import attrs

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
    Origin,
    apportioned,
    dollars,
    in_currency,
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
    OveragePart,
    Report,
    RevenuePart,
    TierLine,
    Troubled,
    UsageLine,
)


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
        self._unknown = 0
        self._tiers = {tier: TierLine(tier=tier) for tier in Tier}
        self._tier_cents: dict[Tier, Fraction] = defaultdict(Fraction)
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
        self._count(customer)
        self._minutes[customer.tier].append(whole_minutes(customer.used_ms))
        days = self._daily_ms[customer.tier]
        for index, used_ms in enumerate(customer.daily_ms):
            days[index] += used_ms
        if customer.overage_usd:
            self._open_overage.append(customer.overage_usd)
        self._judge(customer)
        is_past_due = customer.revenue is not None and customer.revenue.status == "past_due"
        if customer.is_held or is_past_due or customer.past_due_since_ms is not None:
            self._troubled.append(_troubled(customer))

    def _count(self, customer: CustomerDay) -> None:
        line = self._tiers[customer.tier]
        revenue = customer.revenue
        status = "none" if revenue is None else revenue.status
        if revenue is not None:
            self._unknown += revenue.is_unknown
            self._revenue[customer.organization_id] = revenue
            if revenue.currency == USD:
                self._tier_cents[customer.tier] += revenue.cents
        self._tiers[customer.tier] = attrs.evolve(
            line,
            organizations=line.organizations + 1,
            active=line.active + (not customer.is_held),
            by_stripe=line.by_stripe
            + (revenue is not None and revenue.origin is Origin.STRIPE and not customer.is_held),
            trialing=line.trialing + (customer.trialing or status == "trialing"),
            past_due=line.past_due
            + (status == "past_due" or customer.past_due_since_ms is not None),
            suspended=line.suspended + customer.is_held,
        )

    def _judge(self, customer: CustomerDay) -> None:
        now = customer.allowance(self.end_ms)
        pays = customer.limits.base_price_usd > 0
        if pays and not customer.is_held and is_low(now, customer.before):
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
                        extra_usd=None if price is None else price - customer.limits.base_price_usd,
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
        tier_cents = {tier: self._tier_cents[tier] for tier in Tier}
        total = whole_cents(sum(tier_cents.values(), NOTHING))
        shown = apportioned(tier_cents.values(), total)
        return Report(
            day=self.day,
            is_whole=self._is_whole,
            customers=self._customers,
            revenue=self._revenue_part(since, earlier) if has_snapshot else None,
            tiers=tuple(
                attrs.evolve(line, mrr_usd=dollars(cents))
                for line, cents in zip(self._tiers.values(), shown, strict=True)
            ),
            usage=tuple(self._usage(tier) for tier in Tier if self._minutes[tier]),
            overage=OveragePart(
                open_usd=round_to_cents(sum(self._open_overage, ZERO)),
                open_customers=len(self._open_overage),
                billed=facts.billed,
                month=self.day[:7],
            ),
            at_risk=tuple(
                sorted(self._at_risk, key=lambda each: (-each.price_usd, each.organization_id))
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
        total = whole_cents(sum((each.cents for each in now.values()), NOTHING))
        contract = sum(
            (each.cents for each in now.values() if each.origin is Origin.CONTRACT), NOTHING
        )
        others: dict[str, Fraction] = defaultdict(Fraction)
        for each in self._revenue.values():
            if each.currency != USD:
                others[each.currency] += each.cents
        before = whole_cents(sum((each.cents for each in then.values()), NOTHING))
        moved = movements(then, now) if since is not None else {}
        shown = apportioned([each.cents for each in moved.values()], total - before)
        return RevenuePart(
            mrr_usd=dollars(total),
            contract_usd=dollars(whole_cents(contract)),
            other_currencies={name: in_currency(others[name], name) for name in sorted(others)},
            unknown=self._unknown,
            since=since,
            before_usd=None if since is None else dollars(before),
            movements={
                kind: Moved(usd=dollars(cents), customers=each.customers)
                for (kind, each), cents in zip(moved.items(), shown, strict=True)
            },
        )

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
        price_usd=customer.limits.base_price_usd,
        last_week_minutes=sum(daily[-WEEK:]) // MINUTE_MS,
        week_before_minutes=sum(daily[-2 * WEEK : -WEEK]) // MINUTE_MS,
        daily_minutes=tuple(used_ms // MINUTE_MS for used_ms in daily[-2 * WEEK :]),
    )


def _troubled(customer: CustomerDay) -> Troubled:
    why = f"suspended ({customer.held_by})" if customer.is_held else "past due"
    revenue = customer.revenue
    is_usd = revenue is not None and revenue.currency == USD
    since_ms = customer.past_due_since_ms
    return Troubled(
        organization_id=customer.organization_id,
        name=customer.name,
        tier=customer.tier,
        why=why,
        since=_day(since_ms),
        mrr_usd=dollars(whole_cents(revenue.cents)) if revenue is not None and is_usd else ZERO,
    )


def _day(instant_ms: int | None) -> str | None:
    return None if instant_ms is None else rfc3339(instant_ms)[:10]
