"""Monthly recurring revenue by Stripe's definition, and what moved it.

MRR is the sum of the monthly value of `active` and `past_due` subscriptions: no trials, no taxes,
nothing free or metered, recurring discounts deducted. A year is 12 months, a month 52/12 weeks and
365/12 days. Enterprise organizations without a subscription add their contract's base price.
Rule 1: amounts are exact fractions of a cent; they are rounded once, where they are shown.
Rule 2: start + the movements = end, exactly; what is shown is apportioned so that it adds up too.
Source: https://docs.stripe.com/billing/subscriptions/analytics#mrr
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction

import attrs

from meterd.core.money import CENT
from meterd.core.period import MONTHS_PER_YEAR
from meterd.core.plan import Tier
from meterd.core.subscription import USD, Interval, Status


PER_MONTH: Mapping[Interval, Fraction] = {
    Interval.DAY: Fraction(365, MONTHS_PER_YEAR),
    Interval.WEEK: Fraction(52, MONTHS_PER_YEAR),
    Interval.MONTH: Fraction(1),
    Interval.YEAR: Fraction(1, MONTHS_PER_YEAR),
}
"""How often an interval fits into a month."""

WHOLE = frozenset(
    {"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf"}
    | {"xof", "xpf"}
)
"""Currencies whose amounts at Stripe are not in hundredths: 5000 is 5000 yen."""

MILLS = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
"""Currencies whose amounts are in thousandths. https://docs.stripe.com/currencies#zero-decimal"""

COUNTED = frozenset({Status.ACTIVE, Status.PAST_DUE})
"""Statuses of subscriptions that are revenue."""

NOTHING = Fraction(0)


@attrs.frozen(kw_only=True)
class Discount:
    """A coupon in use: a percentage, or an amount off each invoice."""

    percent_off: Decimal | None = None
    amount_off_cents: int | None = None
    """In the subscription's currency. Neither this nor a percentage: it cannot be told."""
    products: frozenset[str] | None = None
    """The products that it is for; `None`: all."""
    is_once: bool = False
    """Off one invoice only: no part of what recurs."""
    ends_at_ms: int | None = None

    @property
    def is_unknown(self) -> bool:
        """Tell whether what it takes off cannot be told: nothing is deducted."""
        return self.percent_off is None and self.amount_off_cents is None

    def is_in_force(self, now_ms: int) -> bool:
        """Tell whether it takes something off every month from now on, until it ends."""
        return not self.is_once and (self.ends_at_ms is None or self.ends_at_ms > now_ms)

    def off(self, cents: Fraction, times_a_month: Fraction) -> Fraction:
        """Return what it takes off a month's `cents` that are charged so often."""
        if self.percent_off is not None:
            return cents * Fraction(self.percent_off) * Fraction(1, 100)
        return min(cents, (self.amount_off_cents or 0) * times_a_month)


@attrs.frozen(kw_only=True)
class RecurringItem:
    """What one line of a subscription costs."""

    unit_amount_cents: Decimal | None
    """`None`: tiered, or not told; it counts nothing and is `is_unknown`."""
    quantity: int = 1
    interval: Interval
    interval_count: int = 1
    is_metered: bool = False
    product_id: str | None = None
    discounts: tuple[Discount, ...] = ()
    """Its own, which come off before the subscription's."""

    @property
    def is_unknown(self) -> bool:
        """Tell whether it has a value that cannot be told."""
        is_timed = self.interval in PER_MONTH and self.interval_count >= 1
        return not self.is_metered and (self.unit_amount_cents is None or not is_timed)

    @property
    def times_a_month(self) -> Fraction:
        """Return how often it is charged in a month."""
        known = PER_MONTH.get(self.interval, NOTHING)
        return known * Fraction(1, self.interval_count) if self.interval_count >= 1 else NOTHING

    @property
    def monthly_cents(self) -> Fraction:
        """Return its monthly value, discounts aside."""
        if self.is_metered or self.unit_amount_cents is None:
            return NOTHING
        return Fraction(self.unit_amount_cents) * self.quantity * self.times_a_month


@attrs.frozen(kw_only=True)
class PricedSubscription:
    """A subscription, reduced to what it brings."""

    id: str
    status: Status
    currency: str = USD
    ends_at_ms: int | None = None
    """When it ends, if somebody has cancelled it; until then it counts."""
    items: tuple[RecurringItem, ...]
    discounts: tuple[Discount, ...] = ()
    customer_discounts: tuple[Discount, ...] = ()
    """Its customer's: they count while it has none of its own."""

    def is_unknown(self, now_ms: int) -> bool:
        """Tell whether a part of its value cannot be told."""
        if self.status not in COUNTED:
            return False
        deducted = [
            *self.invoice_discounts(now_ms),
            *(each for item in self.items for each in in_force(item.discounts, now_ms)),
        ]
        return any(item.is_unknown for item in self.items) or any(
            discount.is_unknown for discount in deducted
        )

    def invoice_discounts(self, now_ms: int) -> list[Discount]:
        """Return what comes off the whole invoice, month by month, in Stripe's order."""
        return in_force(self.discounts, now_ms) or in_force(self.customer_discounts, now_ms)


def in_force(discounts: Iterable[Discount], now_ms: int) -> list[Discount]:
    """Return the discounts that recur and have not ended."""
    return [each for each in discounts if each.is_in_force(now_ms)]


def subscription_cents(subscription: PricedSubscription, now_ms: int) -> Fraction:
    """Return the monthly value of a subscription in cents of its currency, never negative.

    Discounts of an item come off it first, then the subscription's, one after the other.
    Source: https://docs.stripe.com/api/subscriptions/object#subscription_object-discounts
    """
    if subscription.status not in COUNTED:
        return NOTHING
    charged = [item for item in subscription.items if item.monthly_cents > 0]
    left = [item.monthly_cents for item in charged]
    for index, item in enumerate(charged):
        for discount in in_force(item.discounts, now_ms):
            left[index] -= discount.off(left[index], item.times_a_month)
    for discount in subscription.invoice_discounts(now_ms):
        meant = [
            index
            for index, item in enumerate(charged)
            if discount.products is None or item.product_id in discount.products
        ]
        cents = sum((left[index] for index in meant), NOTHING)
        if cents:
            share = Fraction(discount.off(cents, charged[meant[0]].times_a_month), cents)
            for index in meant:
                left[index] -= left[index] * share
    return sum(left, NOTHING)


class Origin(enum.Enum):
    """Where an organization's recurring revenue comes from."""

    STRIPE = "stripe"
    CONTRACT = "contract"
    NONE = "none"


@attrs.frozen(kw_only=True)
class Customer:
    """One organization on one day: what it is worth a month."""

    organization_id: str
    tier: Tier
    status: str
    """The subscription's status; `contract`, or `none` without a subscription."""
    origin: Origin
    currency: str = USD
    cents: Fraction = NOTHING
    is_unknown: bool = False
    """A part of its value cannot be told."""
    has_paid: bool = False
    """It was worth something on this day or before: coming back is a reactivation."""


def customer(
    *,
    organization_id: str,
    tier: Tier,
    base_price_usd: Decimal,
    subscriptions: Iterable[PricedSubscription],
    has_paid: bool,
    now_ms: int,
) -> Customer:
    """Return what an organization is worth: its subscriptions, else an enterprise contract."""
    known = sorted(subscriptions, key=lambda each: each.id)
    live = [each for each in known if each.status.is_live]
    if live:
        best = max(live, key=lambda each: subscription_cents(each, now_ms))
        same = [each for each in live if each.currency == best.currency]
        cents = sum((subscription_cents(each, now_ms) for each in same), NOTHING)
        status, origin, currency = best.status.value, Origin.STRIPE, best.currency
    elif tier is Tier.ENTERPRISE:
        cents = Fraction(base_price_usd) * 100
        status, origin, currency = "contract", Origin.CONTRACT, USD
    else:
        cents, status, origin, currency = NOTHING, "none", Origin.NONE, USD
    return Customer(
        organization_id=organization_id,
        tier=tier,
        status=status,
        origin=origin,
        currency=currency,
        cents=cents,
        is_unknown=any(each.is_unknown(now_ms) for each in known),
        has_paid=has_paid or cents > 0,
    )


class Movement(enum.Enum):
    """Why recurring revenue changed."""

    NEW = "new"
    REACTIVATION = "reactivation"
    EXPANSION = "expansion"
    CONTRACTION = "contraction"
    CHURN = "churn"


@attrs.frozen
class Moved:
    """What one kind of movement added or took, in cents, and how many customers moved."""

    cents: Fraction = NOTHING
    customers: int = 0


def movements(
    start: Mapping[str, Customer], end: Mapping[str, Customer]
) -> Mapping[Movement, Moved]:
    """Return what turned the revenue of one day into that of a later one."""
    found = dict.fromkeys(Movement, Moved())
    for organization_id in start.keys() | end.keys():
        before, after = start.get(organization_id), end.get(organization_id)
        kind = movement(before, after)
        if kind is not None:
            change = _cents(after) - _cents(before)
            found[kind] = Moved(found[kind].cents + change, found[kind].customers + 1)
    return found


def movement(before: Customer | None, after: Customer | None) -> Movement | None:
    """Return why what a customer is worth changed; None: it did not."""
    if _cents(before) == _cents(after):
        return None
    if before is None or not before.cents:
        return Movement.REACTIVATION if before is not None and before.has_paid else Movement.NEW
    if not _cents(after):
        return Movement.CHURN
    return Movement.EXPANSION if _cents(after) > before.cents else Movement.CONTRACTION


def _cents(customer: Customer | None) -> Fraction:
    return NOTHING if customer is None else customer.cents


def total_cents(customers: Iterable[Customer]) -> Fraction:
    """Return the exact recurring revenue of customers."""
    return sum((each.cents for each in customers), NOTHING)


def whole_cents(cents: Fraction) -> int:
    """Return an amount rounded to cents once, half away from zero."""
    doubled = abs(cents) * 2
    rounded = (doubled + 1) // 2
    return rounded if cents >= 0 else -rounded


def dollars(cents: int) -> Decimal:
    """Return whole cents as dollars."""
    return cents * CENT


def in_currency(amount: Fraction, currency: str) -> Decimal:
    """Return an amount in a currency's smallest unit as that currency writes it, rounded once."""
    exponent = -3 if currency in MILLS else 0 if currency in WHOLE else -2
    return Decimal(whole_cents(amount)).scaleb(exponent)


def apportioned(parts: Iterable[Fraction], total: int) -> list[int]:
    """Return the parts in whole cents that add up to `total`: largest remainders first."""
    exact = list(parts)
    floors = [part // 1 for part in exact]
    missing = total - sum(floors)
    order = sorted(range(len(exact)), key=lambda index: (floors[index] - exact[index], index))
    for index in order[: max(0, missing)]:
        floors[index] += 1
    for index in order[::-1][: max(0, -missing)]:
        floors[index] -= 1
    return floors
