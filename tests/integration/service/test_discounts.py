"""A discount at Stripe is deducted from the revenue that meterd reports, as Stripe deducts it."""

from __future__ import annotations

from typing import Any

import pytest
from stripe.params import CouponCreateParams

from tests.integration.service.books import query
from tests.integration.service.test_stripe import Shop, shop


__all__ = ["shop"]

pytestmark = [
    pytest.mark.slow,
    # The client hands httpx its body in an outdated way.
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
]


async def coupon(shop: Shop, fields: CouponCreateParams) -> str:
    """Create a coupon and return its id."""
    return (await shop.api.v1.coupons.create_async(fields)).id


async def revenue(shop: Shop) -> dict[str, Any]:
    """Return what customers are worth now."""
    answer = await shop.service.http.get("/admin/v1/revenue")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_recurring_discount_is_deducted_and_one_off_one_invoice_is_not(shop: Shop) -> None:
    """149 a month less a quarter is 111.75; 20 off once is no part of what recurs."""
    quarter = await coupon(shop, {"percent_off": 25, "duration": "forever"})
    once = await coupon(shop, {"amount_off": 2_000, "currency": "usd", "duration": "once"})
    subscribed = await shop.subscribe("pro", discounts=[{"coupon": once}, {"coupon": quarter}])
    await shop.until_quiet()

    found = await revenue(shop)
    day = found["as_of"][:10]
    report = await shop.service.http.get(f"/admin/v1/reports/{day}")
    text = await shop.service.http.get(
        f"/admin/v1/reports/{day}", headers={"accept": "text/markdown"}
    )

    assert subscribed.status == "active"
    assert found["mrr_usd"] == "111.75"
    assert found["by_tier"]["pro"]["mrr_usd"] == "111.75"
    assert report.json()["revenue"]["mrr_usd"] == "111.75"
    assert "$111.75" in text.text


async def test_a_discount_that_is_given_or_taken_later_moves_the_revenue(shop: Shop) -> None:
    """Its webhook is `customer.subscription.updated`: the subscription is read again, expanded."""
    made = await shop.subscribe("starter")
    await shop.until_quiet()
    full = (await revenue(shop))["mrr_usd"]
    terms: CouponCreateParams = {"duration": "repeating", "duration_in_months": 3}
    nine = await coupon(shop, {"amount_off": 900, "currency": "usd", **terms})

    await shop.api.v1.subscriptions.update_async(made.id, {"discounts": [{"coupon": nine}]})
    await shop.fake.settle()
    await shop.until_quiet()
    less = (await revenue(shop))["mrr_usd"]
    await shop.api.v1.subscriptions.update_async(made.id, {"discounts": ""})
    await shop.fake.settle()
    await shop.until_quiet()
    again = (await revenue(shop))["mrr_usd"]

    assert (full, less, again) == ("49.00", "40.00", "49.00")


async def test_discounts_come_off_the_item_then_one_product_then_the_whole(shop: Shop) -> None:
    """40 of 49 for the plan, 10 of 20 for support, a quarter off both: the invoice says it too."""
    terms: CouponCreateParams = {"duration": "repeating", "duration_in_months": 6}
    support = await shop.api.v1.prices.create_async(
        {
            "currency": "usd",
            "unit_amount": 2_000,
            "recurring": {"interval": "month"},
            "product_data": {"name": "Support"},
        }
    )
    nine = await coupon(shop, {"amount_off": 900, "currency": "usd", **terms})
    half = await coupon(
        shop,
        {
            "percent_off": 50,
            "duration": "forever",
            "applies_to": {"products": [str(support.product)]},
        },
    )
    quarter = await coupon(shop, {"percent_off": 25, "duration": "forever"})
    plan = {"price": shop.prices["starter"], "discounts": [{"coupon": nine}]}
    await shop.subscribe(
        "starter",
        items=[plan, {"price": support.id}],
        discounts=[{"coupon": half}, {"coupon": quarter}],
    )
    await shop.until_quiet()

    found = await revenue(shop)

    assert (found["mrr_usd"], found["unknown_prices"]) == ("37.50", 0)
    assert shop.fake.objects("invoice")[-1]["total"] == 3_750


async def test_a_customers_discount_counts_while_the_subscription_has_none(
    shop: Shop, database_url: str
) -> None:
    """Given and taken in the Dashboard: news of a customer concerns its subscriptions."""
    half = await coupon(shop, {"percent_off": 50, "duration": "forever"})
    tenth = await coupon(shop, {"percent_off": 10, "duration": "forever"})
    made = await shop.subscribe("starter")
    shop.fake.give_discount(shop.customer, half)
    await shop.fake.settle()
    await shop.until_quiet()
    of_customer = (await revenue(shop))["mrr_usd"]

    await shop.api.v1.subscriptions.update_async(made.id, {"discounts": [{"coupon": tenth}]})
    await shop.fake.settle()
    await shop.until_quiet()
    of_subscription = (await revenue(shop))["mrr_usd"]
    await shop.api.v1.subscriptions.update_async(made.id, {"discounts": ""})
    await shop.api.v1.customers.delete_discount_async(shop.customer)
    await shop.fake.settle()
    await shop.until_quiet()

    assert (of_customer, of_subscription) == ("24.50", "44.10")
    assert (await revenue(shop))["mrr_usd"] == "49.00"
    [kept] = await query(database_url, "SELECT object::text AS object FROM stripe_subscriptions")
    assert "ann@example.com" not in kept["object"]
