"""Monthly recurring revenue against a naive model: what a year's invoices add up to, by twelve."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given, strategies as st

from meterd.core.plan import Tier
from meterd.core.revenue import (
    Discount,
    PricedSubscription,
    RecurringItem,
    customer,
    subscription_cents,
    total_cents,
)
from meterd.core.subscription import Interval, Status


NOW_MS = 1_770_854_400_000

INVOICES_A_YEAR = {Interval.DAY: 365, Interval.WEEK: 52, Interval.MONTH: 12, Interval.YEAR: 1}

items = st.builds(
    RecurringItem,
    unit_amount_cents=st.none() | st.decimals(0, 20_000, places=2, allow_nan=False),
    quantity=st.integers(0, 5),
    interval=st.sampled_from(list(Interval)),
    interval_count=st.integers(1, 24),
    is_metered=st.booleans(),
)
discounts = st.builds(
    Discount,
    percent_off=st.none() | st.sampled_from([Decimal(0), Decimal("12.5"), Decimal(100)]),
    amount_off_cents=st.none() | st.integers(0, 3_000),
    is_once=st.booleans(),
    ends_at_ms=st.sampled_from([None, NOW_MS - 1, NOW_MS, NOW_MS + 1]),
)
subscriptions = st.builds(
    PricedSubscription,
    id=st.just("sub_1"),
    status=st.sampled_from(list(Status)),
    items=st.lists(items, max_size=3).map(tuple),
    discounts=st.lists(discounts, max_size=2).map(tuple),
)


def naive_month_cents(subscription: PricedSubscription) -> Fraction:
    """Return a twelfth of what a year's invoices are worth, invoice by invoice."""
    if subscription.status.value not in {"active", "past_due"}:
        return Fraction(0)
    year = Fraction(0)
    invoices_of_first = None
    for item in subscription.items:
        invoices = Fraction(INVOICES_A_YEAR.get(item.interval, 0), item.interval_count)
        price = item.unit_amount_cents
        if item.is_metered or price is None or not invoices or not price or not item.quantity:
            continue
        invoices_of_first = invoices_of_first or invoices
        numerator, denominator = price.as_integer_ratio()
        year += invoices * item.quantity * Fraction(numerator, denominator)
    for discount in subscription.discounts:
        is_over = discount.ends_at_ms is not None and discount.ends_at_ms <= NOW_MS
        if discount.is_once or is_over:
            continue
        if discount.percent_off is not None:
            year = year - year * Fraction(str(discount.percent_off)) / 100
        elif discount.amount_off_cents is not None and invoices_of_first:
            year = year - discount.amount_off_cents * invoices_of_first
    return max(year / 12, Fraction(0))


@given(subscriptions)
def test_a_subscription_is_worth_a_twelfth_of_its_year(subscription: PricedSubscription) -> None:
    """Any mixture of intervals, quantities and discounts, exactly and never below nothing."""
    assert subscription_cents(subscription, NOW_MS) == naive_month_cents(subscription)


@given(st.lists(subscriptions, max_size=3), st.sampled_from(list(Tier)), st.integers(0, 900))
def test_everybody_counts_once_by_subscription_or_by_contract(
    owned: list[PricedSubscription], tier: Tier, base_usd: int
) -> None:
    """A contract counts only on Enterprise, and only beside no subscription that is revenue."""
    found = customer(
        organization_id="org_1",
        tier=tier,
        base_price_usd=Decimal(base_usd),
        subscriptions=owned,
        has_paid=False,
        now_ms=NOW_MS,
    )
    worth = sum((naive_month_cents(each) for each in owned), Fraction(0))
    is_by_contract = tier is Tier.ENTERPRISE and found.origin.value == "contract"

    assert found.cents == (Fraction(base_usd * 100) if is_by_contract else worth)
    assert total_cents([found, found]) == 2 * found.cents
