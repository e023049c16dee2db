"""A discount at Stripe is deducted from the revenue that meterd reports, as Stripe deducts it."""

from __future__ import annotations

from typing import Any

import pytest
from stripe.params import CouponCreateParams

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
