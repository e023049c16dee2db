"""Monthly recurring revenue against a naive model: what a year's invoices add up to, by twelve."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

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

discounts = st.builds(
    Discount,
    percent_off=st.none() | st.sampled_from([Decimal(0), Decimal("12.5"), Decimal(100)]),
    amount_off_cents=st.none() | st.integers(0, 3_000),
    products=st.sampled_from([None, frozenset({"plan"}), frozenset({"plan", "extra"})]),
    is_once=st.booleans(),
    ends_at_ms=st.sampled_from([None, NOW_MS - 1, NOW_MS, NOW_MS + 1]),
)
items = st.builds(
    RecurringItem,
    unit_amount_cents=st.none() | st.decimals(0, 20_000, places=2, allow_nan=False),
    quantity=st.integers(0, 5),
    interval=st.sampled_from(list(Interval)),
    interval_count=st.integers(1, 24),
    is_metered=st.booleans(),
    product_id=st.sampled_from(["plan", "extra"]),
    discounts=st.lists(discounts, max_size=2).map(tuple),
)
subscriptions = st.builds(
    PricedSubscription,
    id=st.just("sub_1"),
    status=st.sampled_from(list(Status)),
    items=st.lists(items, max_size=3).map(tuple),
    discounts=st.lists(discounts, max_size=2).map(tuple),
    customer_discounts=st.lists(discounts, max_size=1).map(tuple),
)


def naive_month_cents(subscription: PricedSubscription) -> Fraction:
    """Return a twelfth of what a year's invoices are worth, line by line."""
    if subscription.status.value not in {"active", "past_due"}:
        return Fraction(0)
    lines: list[dict[str, Any]] = []
    for item in subscription.items:
        invoices = Fraction(INVOICES_A_YEAR.get(item.interval, 0), item.interval_count)
        price = item.unit_amount_cents
        if item.is_metered or price is None or not invoices or not price or not item.quantity:
            continue
        numerator, denominator = price.as_integer_ratio()
        year = invoices * item.quantity * Fraction(numerator, denominator)
        line = {"product": item.product_id, "invoices": invoices, "year": year}
        for discount in item.discounts:
            if naive_recurs(discount):
                naive_deduct(discount, [line])
        lines.append(line)
    own = [discount for discount in subscription.discounts if naive_recurs(discount)]
    inherited = [each for each in subscription.customer_discounts if naive_recurs(each)]
    for discount in own or inherited:
        products = discount.products
        naive_deduct(discount, [e for e in lines if not products or e["product"] in products])
    return Fraction(sum(line["year"] for line in lines), 12)


def naive_recurs(discount: Discount) -> bool:
    """Tell whether a discount is on next month's invoice and on those after it."""
    return not discount.is_once and (discount.ends_at_ms or NOW_MS + 1) > NOW_MS


def naive_deduct(discount: Discount, lines: list[dict[str, Any]]) -> None:
    """Take a coupon off the lines' year; an amount is spread over them by what they cost."""
    if discount.percent_off is not None:
        for line in lines:
            line["year"] -= line["year"] * Fraction(str(discount.percent_off)) / 100
    elif discount.amount_off_cents is not None and lines:
        whole = sum(line["year"] for line in lines)
        taken = min(discount.amount_off_cents * lines[0]["invoices"], whole)
        for line in lines:
            line["year"] *= (whole - taken) / whole if whole else 1


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
