"""Prorations: credit for time not used, charge for time left, exact to the second.

Source: https://docs.stripe.com/billing/subscriptions/prorations. Both become pending invoice
items of the subscription; whether they are invoiced now is the caller's `proration_behavior`.
"""

from __future__ import annotations

from meterd.testing.fake_stripe import shapes
from meterd.testing.fake_stripe.errors import Json
from meterd.testing.fake_stripe.world import World


def share(amount: int, part_s: int, whole_s: int) -> int:
    """`amount x part / whole` in whole cents, halves away from zero."""
    assert whole_s > 0, whole_s
    doubled = 2 * abs(amount) * part_s + whole_s
    cents = doubled // (2 * whole_s)
    return cents if amount >= 0 else -cents


def price_of(item: Json) -> int:
    """Cents an item costs for a whole interval."""
    amount: int = (item["price"]["unit_amount"] or 0) * (item["quantity"] or 0)
    return amount


def add_item(
    world: World,
    subscription: Json,
    item: Json,
    *,
    amount: int,
    period: tuple[int, int],
    text: str,
) -> Json | None:
    """Return a pending proration item; none for nothing."""
    if amount == 0:
        return None
    price = item["price"]
    record = shapes.invoice_item(
        world.new_id("ii"),
        customer_id=subscription["customer"],
        now_s=world.now_s,
        livemode=subscription["livemode"],
    )
    quantity = item["quantity"] or 0
    record.update(
        amount=amount,
        net_amount=amount,
        currency=subscription["currency"],
        description=f"{text} {price['nickname'] or price['product']}",
        discountable=False,
        parent={
            "subscription_details": {
                "subscription": subscription["id"],
                "subscription_item": item["id"],
            },
            "type": "subscription_details",
        },
        period={"start": period[0], "end": period[1]},
        pricing=shapes.pricing_of(price, price["unit_amount_decimal"]),
        proration=True,
        proration_details={"credited_items": None, "discount_amounts": []},
        quantity=quantity,
        quantity_decimal=str(quantity),
    )
    world.add(record)
    world.emit("invoiceitem.created", record)
    return record


def credit_unused(world: World, subscription: Json, item: Json, *, at_s: int) -> None:
    """Give back the rest of the item's current period."""
    start_s, end_s = item["current_period_start"], item["current_period_end"]
    cents = share(price_of(item), end_s - at_s, end_s - start_s)
    add_item(
        world,
        subscription,
        item,
        amount=-cents,
        period=(at_s, end_s),
        text="Unused time on",
    )


def charge_remaining(world: World, subscription: Json, item: Json, *, at_s: int) -> None:
    """Charge the item for the rest of its current period."""
    start_s, end_s = item["current_period_start"], item["current_period_end"]
    cents = share(price_of(item), end_s - at_s, end_s - start_s)
    add_item(
        world,
        subscription,
        item,
        amount=cents,
        period=(at_s, end_s),
        text="Remaining time on",
    )
