"""Recurring revenue by Stripe's definition, and movements that add up."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import attrs
import pytest
from hypothesis import given, strategies as st

from meterd.core.plan import Tier
from meterd.core.revenue import (
    Customer,
    Discount,
    Movement,
    Origin,
    PricedSubscription,
    RecurringItem,
    apportioned,
    customer,
    dollars,
    in_currency,
    movements,
    subscription_cents,
    total_cents,
    whole_cents,
)
from meterd.core.subscription import Interval, Status


def make_item(
    cents: int = 4_900, interval: Interval = Interval.MONTH, **fields: object
) -> RecurringItem:
    """Return an item with a flat price."""
    values = {"unit_amount_cents": Decimal(cents), "interval": interval} | fields
    return RecurringItem(**values)  # type: ignore[arg-type]  # checked by attrs


def make_subscription(*items: RecurringItem, **fields: object) -> PricedSubscription:
    """Return an active subscription."""
    values: dict[str, object] = {
        "id": "sub_1",
        "status": Status.ACTIVE,
        "items": items or (make_item(),),
    }
    return PricedSubscription(**(values | fields))  # type: ignore[arg-type]  # checked by attrs


def make_customer(
    organization_id: str, cents: Fraction | int, *, has_paid: bool = False
) -> Customer:
    """Return a customer worth so much."""
    return Customer(
        organization_id=organization_id,
        tier=Tier.STARTER,
        status="active",
        origin=Origin.STRIPE,
        cents=Fraction(cents),
        has_paid=has_paid or cents > 0,
    )


@pytest.mark.parametrize(
    ("interval", "count", "cents"),
    [
        (Interval.MONTH, 1, Fraction(12_000)),
        (Interval.MONTH, 3, Fraction(4_000)),
        (Interval.YEAR, 1, Fraction(1_000)),
        (Interval.YEAR, 2, Fraction(500)),
        (Interval.WEEK, 1, Fraction(52_000)),
        (Interval.DAY, 1, Fraction(365_000)),
        (Interval.UNKNOWN, 1, Fraction(0)),
    ],
)
def test_a_price_is_normalised_to_a_month_exactly(
    interval: Interval, count: int, cents: Fraction
) -> None:
    """$120 a year are $10 a month; 12ths of weeks and days stay fractions."""
    item = make_item(12_000, interval, interval_count=count)

    assert subscription_cents(make_subscription(item), 0) == cents


@pytest.mark.parametrize("status", list(Status))
def test_only_active_and_past_due_subscriptions_are_revenue(status: Status) -> None:
    """A trial brings nothing yet, an unpaid subscription nothing any more."""
    cents = subscription_cents(make_subscription(status=status), 0)

    assert (cents > 0) == (status in {Status.ACTIVE, Status.PAST_DUE})


def test_metered_and_free_items_add_nothing_and_quantities_multiply() -> None:
    """Usage revenue is not recurring revenue."""
    items = (make_item(quantity=3), make_item(0), make_item(100, is_metered=True))

    assert subscription_cents(make_subscription(*items), 0) == 14_700


def test_recurring_discounts_are_deducted_and_once_or_over_is_not() -> None:
    """A coupon for one invoice changes no month after it."""
    off = Discount(percent_off=Decimal("12.5"))
    once = Discount(percent_off=Decimal(50), is_once=True)
    over = Discount(percent_off=Decimal(50), ends_at_ms=1_000)
    fixed = Discount(amount_off_cents=1_200)

    assert subscription_cents(
        make_subscription(discounts=(once, over, off)), 1_000
    ) == 4_900 * Fraction(7, 8)
    yearly = make_subscription(make_item(12_000, Interval.YEAR), discounts=(fixed,))
    assert subscription_cents(yearly, 0) == 1_000 - 100
    free = make_item(0, Interval.YEAR)
    assert subscription_cents(make_subscription(free, make_item(), discounts=(fixed,)), 0) == 3_700
    assert subscription_cents(make_subscription(free, discounts=(fixed,)), 0) == 0
    generous = make_subscription(discounts=(Discount(amount_off_cents=9_999),))
    assert subscription_cents(generous, 0) == 0


def test_discounts_come_off_the_item_then_the_subscription_and_the_customers_only_alone() -> None:
    """Nine off the seats, then half of everything: 20 + (49 - 9), halved; order matters."""
    half, nine = Discount(percent_off=Decimal(50)), Discount(amount_off_cents=900)
    seats = make_item(4_900, discounts=(nine,))
    other = make_item(2_000)
    expired = attrs.evolve(half, ends_at_ms=1)

    assert subscription_cents(make_subscription(seats, other, discounts=(half,)), 1) == 3_000
    both = make_subscription(seats, other, discounts=(half,), customer_discounts=(nine,))
    assert subscription_cents(both, 1) == 3_000
    after = attrs.evolve(both, discounts=(expired,))
    assert subscription_cents(after, 1) == 5_100
    assert subscription_cents(after, 0) == 3_000
    greedy = make_item(500, discounts=(nine,))
    assert subscription_cents(make_subscription(greedy, other), 1) == 2_000


def test_a_coupon_for_some_products_leaves_the_others_alone() -> None:
    """Sixty off an add-on of fifty a month takes the fifty, not ten of the plan."""
    plan = make_item(4_900, product_id="prod_plan")
    extra = make_item(5_000, product_id="prod_extra")
    sixty = Discount(amount_off_cents=6_000, products=frozenset({"prod_extra"}))
    half_of_plan = Discount(percent_off=Decimal(50), products=frozenset({"prod_plan"}))

    assert subscription_cents(make_subscription(plan, extra, discounts=(sixty,)), 0) == 4_900
    assert subscription_cents(make_subscription(plan, extra, discounts=(half_of_plan,)), 0) == 7_450
    assert subscription_cents(make_subscription(extra, discounts=(half_of_plan,)), 0) == 5_000


def test_an_enterprise_without_a_subscription_is_worth_its_contract_and_others_nothing() -> None:
    """A plan that an operator gave away is no revenue."""

    def worth(tier: Tier, *subscriptions: PricedSubscription) -> Customer:
        return customer(
            organization_id="org_1",
            tier=tier,
            base_price_usd=Decimal("1200.50"),
            subscriptions=subscriptions,
            has_paid=False,
            now_ms=0,
        )

    assert worth(Tier.ENTERPRISE).cents == 120_050
    assert worth(Tier.ENTERPRISE).origin is Origin.CONTRACT
    assert worth(Tier.PRO).cents == 0
    assert worth(Tier.ENTERPRISE, make_subscription()).cents == 4_900
    ended = make_subscription(status=Status.CANCELED)
    assert worth(Tier.ENTERPRISE, ended).cents == 120_050


def test_a_customer_is_shown_with_plan_status_and_currency() -> None:
    """The report's line of one organization; two currencies are never added up."""
    trial = make_subscription(id="sub_1", status=Status.TRIALING, currency="usd")
    untold = (Discount(),)
    euros = make_subscription(id="sub_2", status=Status.PAST_DUE, currency="eur", discounts=untold)
    told = customer(
        organization_id="org_1",
        tier=Tier.PRO,
        base_price_usd=Decimal(0),
        subscriptions=[euros, trial],
        has_paid=False,
        now_ms=0,
    )

    assert told == Customer(
        organization_id="org_1",
        tier=Tier.PRO,
        status="past_due",
        origin=Origin.STRIPE,
        currency="eur",
        cents=Fraction(4_900),
        is_unknown=True,
        has_paid=True,
    )


@pytest.mark.parametrize(
    ("tier", "base", "has_paid", "status", "paid"),
    [
        (Tier.ENTERPRISE, "0.01", False, "contract", True),
        (Tier.ENTERPRISE, "0", False, "contract", False),
        (Tier.FREE, "0.01", False, "none", False),
        (Tier.FREE, "0", True, "none", True),
    ],
)
def test_who_was_worth_a_cent_once_has_paid_for_ever(
    tier: Tier, base: str, has_paid: bool, status: str, paid: bool
) -> None:
    """Otherwise somebody who returns is counted as a new customer."""
    ended = make_subscription(make_item(unit_amount_cents=None), status=Status.CANCELED)
    told = customer(
        organization_id="org_1",
        tier=tier,
        base_price_usd=Decimal(base),
        subscriptions=[ended],
        has_paid=has_paid,
        now_ms=0,
    )

    assert (told.status, told.has_paid, told.is_unknown) == (status, paid, False)
    assert told.currency == "usd"


def test_cents_that_are_missing_go_to_the_largest_remainders() -> None:
    """Of equal ones to the first: the same report twice shows the same lines."""
    parts = [Fraction(1, 4), Fraction(3, 4), Fraction(1, 2), Fraction(1, 2)]

    assert [apportioned(parts, total) for total in (0, 1, 2, -1, -2)] == [
        [0, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 1, 1, 0],
        [-1, 0, 0, 0],
        [-1, 0, 0, -1],
    ]


def test_what_cannot_be_told_is_said_to_be_unknown() -> None:
    """A tiered price, or a discount known by its id only, must not pass for zero."""
    untold = (Discount(),)
    metered = make_item(unit_amount_cents=None, is_metered=True)
    quarter = (Discount(percent_off=Decimal(25)),)

    assert make_subscription(make_item(unit_amount_cents=None)).is_unknown(0)
    assert make_subscription(discounts=untold).is_unknown(0)
    assert make_subscription(customer_discounts=untold).is_unknown(0)
    assert make_subscription(make_item(discounts=untold)).is_unknown(0)
    assert not make_subscription(metered).is_unknown(0)
    assert not make_subscription(discounts=quarter, customer_discounts=untold).is_unknown(0)
    ended = (Discount(ends_at_ms=5),)
    for gone in (
        make_subscription(discounts=ended, customer_discounts=ended),
        make_subscription(make_item(discounts=ended)),
        make_subscription(make_item(unit_amount_cents=None), status=Status.CANCELED),
    ):
        assert not gone.is_unknown(5)
    assert subscription_cents(make_subscription(make_item(1), discounts=untold), 0) == 1


def test_movements_are_told_apart_by_what_was_before() -> None:
    """Who comes back is not new, who pays less has not left."""
    start = [
        make_customer("grows", 100),
        make_customer("shrinks", 300),
        make_customer("leaves", 50),
        make_customer("returns", 0, has_paid=True),
        make_customer("waits", 0),
        *(make_customer(f"stays_{number}", 5) for number in range(9)),
    ]
    end = [
        *(make_customer(f"stays_{number}", 5) for number in range(9)),
        make_customer("grows", 101),
        make_customer("shrinks", 1),
        make_customer("leaves", 0, has_paid=True),
        make_customer("returns", 70),
        make_customer("waits", 10),
        make_customer("comes", 20),
    ]
    moved = movements({c.organization_id: c for c in start}, {c.organization_id: c for c in end})

    assert {kind: (int(m.cents), m.customers) for kind, m in moved.items()} == {
        Movement.NEW: (30, 2),
        Movement.REACTIVATION: (70, 1),
        Movement.EXPANSION: (1, 1),
        Movement.CONTRACTION: (-299, 1),
        Movement.CHURN: (-50, 1),
    }


fractions = st.fractions(min_value=0, max_value=10**6, max_denominator=365)
books = st.dictionaries(st.sampled_from("abcdefgh"), fractions, max_size=8)


@given(books, books, st.sets(st.sampled_from("abcdefgh")))
def test_start_and_movements_are_end_exactly_and_as_shown(
    start: dict[str, Fraction], end: dict[str, Fraction], paid: set[str]
) -> None:
    """A report whose lines do not add up is read by nobody twice."""
    before = {key: make_customer(key, cents, has_paid=key in paid) for key, cents in start.items()}
    after = {key: make_customer(key, cents) for key, cents in end.items()}
    moved = movements(before, after)
    total_before, total_after = total_cents(before.values()), total_cents(after.values())

    assert total_before + sum(m.cents for m in moved.values()) == total_after
    change = whole_cents(total_after) - whole_cents(total_before)
    shown = apportioned([m.cents for m in moved.values()], change)
    assert whole_cents(total_before) + sum(shown) == whole_cents(total_after)
    assert all(abs(cents - m.cents) <= 2 for cents, m in zip(shown, moved.values(), strict=True))


@given(st.fractions(max_denominator=10_000))
def test_cents_are_rounded_half_away_from_zero(cents: Fraction) -> None:
    """The same rule as everywhere in meterd: half up, whatever the sign."""
    rounded = whole_cents(cents)

    assert abs(rounded - cents) <= Fraction(1, 2)
    assert whole_cents(-cents) == -rounded
    assert whole_cents(Fraction(1, 2)) == 1


@pytest.mark.parametrize(
    ("currency", "shown"), [("eur", "12.35"), ("jpy", "1235"), ("kwd", "1.235"), ("xyz", "12.35")]
)
def test_amounts_are_written_as_their_currency_is(currency: str, shown: str) -> None:
    """Yen have no hundredths: 1,235 of Stripe's units are not 12.35."""
    assert str(in_currency(Fraction(2_469, 2), currency)) == shown
    assert str(dollars(1_235)) == "12.35"
