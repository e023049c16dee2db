"""Subscriptions priced from the JSON of Stripe, discounts in every shape it has had."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction

import pytest

from meterd.core.priced import read_priced
from meterd.core.revenue import Discount, PricedSubscription, RecurringItem, subscription_cents
from meterd.core.subscription import Interval, Status


def subscription(**fields: object) -> str:
    """Return the JSON of two seats of $49 a month, and of what is used every three months."""
    items = [
        {"id": "si_1", "quantity": 2, "price": price("4900", "month", 1, "licensed")},
        {"id": "si_2", "quantity": 1, "price": price("5", "month", 3, "metered")},
    ]
    found = {
        "id": "sub_1",
        "object": "subscription",
        "customer": "cus_1",
        "status": "past_due",
        "currency": "eur",
        "items": {"data": items},
    }
    return json.dumps(found | fields)


def price(cents: str, interval: str, count: int, usage: str) -> dict[str, object]:
    """Return a flat price as Stripe writes it."""
    recurring = {"interval": interval, "interval_count": count, "usage_type": usage}
    return {
        "id": "price_1",
        "unit_amount": int(cents),
        "unit_amount_decimal": cents,
        "currency": "eur",
        "recurring": recurring,
    }


def priced(**fields: object) -> PricedSubscription:
    """Return what is read of the subscription."""
    found = read_priced(subscription(**fields))
    assert found is not None
    return found


def test_a_mirrored_subscription_is_priced_with_all_that_its_value_needs() -> None:
    """What is not carried over would be a default: dollars, a month, nothing metered."""
    seats = RecurringItem(unit_amount_cents=Decimal(4_900), quantity=2, interval=Interval.MONTH)
    used = RecurringItem(
        unit_amount_cents=Decimal(5), interval=Interval.MONTH, interval_count=3, is_metered=True
    )

    assert priced() == PricedSubscription(
        id="sub_1", status=Status.PAST_DUE, currency="eur", items=(seats, used)
    )
    assert subscription_cents(priced(), 0) == 9_800
    assert read_priced("[]") is None
    assert read_priced('{"object": "invoice"}') is None


COUPON = {"id": "c", "percent_off": 12.5, "amount_off": None, "duration": "forever"}


@pytest.mark.parametrize(
    "fields",
    [
        {"discounts": [{"id": "di_1", "source": {"type": "coupon", "coupon": COUPON}}]},
        {"discounts": [{"id": "di_1", "source": None, "coupon": COUPON}]},
        {"discounts": [], "discount": {"id": "di_1", "coupon": COUPON}},
    ],
)
def test_a_coupon_is_found_wherever_an_api_version_puts_it(fields: dict[str, object]) -> None:
    """A mirror holds objects of the version that was current when they were sent."""
    assert priced(**fields).discounts == (Discount(percent_off=Decimal("12.5")),)
    assert not priced(**fields).is_unknown(0)


@pytest.mark.parametrize(
    ("coupon", "discount"),
    [
        ({"amount_off": 500}, Discount(amount_off_cents=500)),
        ({"percent_off": "10", "amount_off": 500}, Discount(percent_off=Decimal(10))),
        ({"percent_off": 0}, Discount(percent_off=Decimal(0))),
        ({"percent_off": 100}, Discount(percent_off=Decimal(100))),
        ({"percent_off": 20, "duration": "once"}, Discount(percent_off=Decimal(20), is_once=True)),
        ({"percent_off": -1}, None),
        ({"percent_off": 100.5}, None),
        ({"percent_off": "NaN"}, None),
        ({"percent_off": True}, None),
        ({"percent_off": None, "amount_off": "500"}, None),
        ({}, None),
        ("c", None),
    ],
)
def test_a_discount_is_a_share_or_an_amount_or_unknown(
    coupon: object, discount: Discount | None
) -> None:
    """What cannot be understood is told, never taken for no discount."""
    found = priced(discounts=[{"id": "di_1", "source": {"coupon": coupon}}])

    assert found.discounts == (discount or Discount(),)
    assert found.is_unknown(0) is (discount is None)


def test_a_discount_counts_up_to_its_end() -> None:
    """Stripe tells seconds; the month after the last discounted one is worth its full price."""
    found = priced(discounts=[{"id": "di_1", "end": 1_700_000_000, "coupon": COUPON}])

    assert found.discounts[0].ends_at_ms == 1_700_000_000_000
    values = [subscription_cents(found, 1_700_000_000_000 + late_ms) for late_ms in (-1, 0)]
    assert values == [8_575, 9_800]


def test_a_discount_that_is_not_in_the_object_makes_the_value_unknown() -> None:
    """Known by its id only, or of one line: a report that ignores it would show too much."""
    items = {"data": [{"id": "si_1", "discounts": ["di_2"], "price": price("1", "day", 1, "")}]}

    assert priced(discounts=["di_1"]).is_unknown(0)
    assert priced(items=items).is_unknown(0)
    assert not priced(discounts=None, discount=None).is_unknown(0)


def discount_json(**coupon: object) -> dict[str, object]:
    """Return a discount as Stripe shows it expanded."""
    whole = {"id": "c", "object": "coupon", "duration": "forever", "percent_off": None} | coupon
    return {"id": "di_1", "object": "discount", "source": {"type": "coupon", "coupon": whole}}


def test_discounts_are_read_from_the_item_the_subscription_and_the_customer() -> None:
    """Each where Stripe has it; an amount in another currency cannot be told."""
    half = discount_json(percent_off=50.0)
    dollars = discount_json(amount_off=900, currency="usd")
    in_both = discount_json(
        amount_off=900, currency="usd", currency_options={"eur": {"amount_off": 800}}
    )
    seat = {**price("4900", "month", 1, "licensed"), "product": "prod_1"}

    def worth(of_item: object, of_subscription: object, of_customer: object) -> Fraction | None:
        found = priced(
            status="active",
            customer={"id": "cus_1", "discount": of_customer},
            items={"data": [{"id": "si_1", "price": seat, "discounts": of_item}]},
            discounts=of_subscription,
        )
        return None if found.is_unknown(0) else subscription_cents(found, 0)

    assert worth([half], [], None) == 2_450
    assert worth([], [in_both], None) == 4_100
    assert worth([], [], half) == 2_450
    assert worth([half], [half], half) == 1_225
    assert worth([], [], in_both) == worth([in_both], [], None) == 4_100
    assert worth([], [], dollars) is worth([dollars], [], None) is None
    of_this = discount_json(percent_off=50, applies_to={"products": ["prod_1"]})
    assert worth([], [of_this], None) == 2_450
    of_other = discount_json(percent_off=50, applies_to={"products": ["prod_2"]})
    assert worth([], [of_other], half) == 4_900


@pytest.mark.parametrize("items", [None, [], {"data": None}, {"data": ["si_1"]}])
def test_a_subscription_without_items_is_worth_nothing(items: object) -> None:
    """An object of an odd shape ends in a number, not in a report that fails."""
    assert subscription_cents(priced(items=items), 0) == 0


def test_a_cancelled_subscription_ends_with_its_last_item_or_on_its_day() -> None:
    """What is cancelled is no revenue from that instant on, and not a moment earlier."""
    seat = price("4900", "month", 1, "licensed")
    ends = [{"id": "a", "price": seat, "current_period_end": each} for each in (300, 400)]
    items = {"data": ends}

    assert priced(items=items).ends_at_ms is None
    assert priced(items=items, cancel_at_period_end=True).ends_at_ms == 400_000
    assert priced(items=items, cancel_at=500).ends_at_ms == 500_000
    assert priced(items={"data": []}, cancel_at_period_end=True, cancel_at=9).ends_at_ms == 9_000
