"""Subscription items: their prices and the one period they share."""

from __future__ import annotations

import copy

from meterd.testing.fake_stripe import discounts, shapes
from meterd.testing.fake_stripe.clock import boundary_after
from meterd.testing.fake_stripe.errors import Json, bad_param, missing_param
from meterd.testing.fake_stripe.world import World, merge_metadata


def recurring_price(world: World, price_id: str, where: str) -> Json:
    """Return an active recurring price; refuses others as Stripe does."""
    price = world.get("price", price_id, param=where)
    if price["recurring"] is None:
        raise bad_param(
            "The price specified is set to `type=one_time` but this field only accepts prices"
            " with `type=recurring`.",
            where,
        )
    if not price["active"]:
        raise bad_param("The price specified is inactive.", where)
    return price


def new_item(world: World, subscription: Json, given: Json, where: str) -> Json:
    """Return an item from its parameters, not yet given a period."""
    if "price" not in given:
        raise missing_param(f"{where}[price]")
    item = shapes.subscription_item(
        world.new_id("si"), subscription_id=subscription["id"], now_s=world.now_s
    )
    set_price(item, recurring_price(world, given["price"], f"{where}[price]"))
    item["quantity"] = given.get("quantity", 1)
    if "metadata" in given:
        merge_metadata(item, given["metadata"])
    set_discounts(world, subscription, item, given)
    return item


def set_discounts(world: World, subscription: Json, item: Json, given: Json) -> None:
    """Replace an item's discounts, if its parameters name any."""
    if "discounts" in given:
        discounts.set_discounts(
            world,
            item,
            given["discounts"],
            customer_id=subscription["customer"],
            names={"subscription_item": item["id"]},
        )


def set_price(item: Json, price: Json) -> None:
    """Put a price, and its legacy plan view, on an item."""
    item["price"] = copy.deepcopy(price)
    item["plan"] = shapes.plan_of(price)


def check_together(subscription: Json) -> None:
    """All items bill in one currency and one interval; take the currency over."""
    found = subscription["items"]["data"]
    if not found:
        raise bad_param("A subscription must have at least one active item.", "items")
    currencies = {item["price"]["currency"] for item in found}
    if len(currencies) > 1:
        raise bad_param("All items of a subscription must have the same currency.", "items")
    intervals = {
        (item["price"]["recurring"]["interval"], item["price"]["recurring"]["interval_count"])
        for item in found
    }
    if len(intervals) > 1:
        raise bad_param("This account's items must all have the same interval.", "items")
    subscription["currency"] = currencies.pop()


def interval_of(subscription: Json) -> tuple[str, int]:
    """Interval and count of the subscription's prices."""
    recurring = subscription["items"]["data"][0]["price"]["recurring"]
    return recurring["interval"], recurring["interval_count"]


def next_boundary(subscription: Json, moment_s: int) -> int:
    """Return the first boundary after a moment, counted from the anchor."""
    interval, count = interval_of(subscription)
    return boundary_after(subscription["billing_cycle_anchor"], interval, count, moment_s)


def period_of(subscription: Json) -> tuple[int, int]:
    """Return the current period, half-open, in seconds since 1970."""
    item = subscription["items"]["data"][0]
    return item["current_period_start"], item["current_period_end"]


def set_period(subscription: Json, start_s: int, end_s: int) -> None:
    """Give every item the period."""
    for item in subscription["items"]["data"]:
        item["current_period_start"], item["current_period_end"] = start_s, end_s


def apply_schedule(world: World, subscription: Json) -> None:
    """Make the change that was put off to the end of the period, if there is one."""
    wanted = world.hidden.scheduled_items.pop(subscription["id"], None)
    if wanted is None:
        return
    for given in wanted:
        for item in subscription["items"]["data"]:
            if item["id"] == given["id"]:
                set_price(item, world.get("price", given["price"]))
                item["quantity"] = given.get("quantity", item["quantity"])
    subscription["schedule"] = None
