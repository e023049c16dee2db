"""Coupons put on subscriptions."""

from __future__ import annotations

from meterd.testing.fake_stripe import shapes
from meterd.testing.fake_stripe.clock import add_intervals
from meterd.testing.fake_stripe.errors import Json, bad_param
from meterd.testing.fake_stripe.world import World


def set_discounts(world: World, subscription: Json, given: list[Json] | str) -> None:
    """Replace the subscription's discounts; an empty string removes all."""
    kept: list[str] = []
    for index, each in enumerate(given if isinstance(given, list) else []):
        if "discount" in each:
            kept.append(world.get("discount", each["discount"], param="discounts")["id"])
            continue
        if "coupon" not in each:
            raise bad_param("Only coupons can be applied here.", f"discounts[{index}]")
        coupon = world.get("coupon", each["coupon"], param=f"discounts[{index}][coupon]")
        coupon["times_redeemed"] += 1
        record = shapes.discount(
            world.new_id("di"),
            coupon_id=coupon["id"],
            customer_id=subscription["customer"],
            start_s=world.now_s,
        )
        record["subscription"] = subscription["id"]
        if coupon["duration"] == "repeating":
            record["end"] = add_intervals(world.now_s, "month", coupon["duration_in_months"])
        world.add(record)
        world.emit("customer.discount.created", record)
        kept.append(record["id"])
    subscription["discounts"] = kept
