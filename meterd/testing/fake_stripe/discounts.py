"""Coupons put on subscriptions, on their items and on customers, and taken off invoices."""

from __future__ import annotations

from meterd.testing.fake_stripe import shapes
from meterd.testing.fake_stripe.clock import add_intervals
from meterd.testing.fake_stripe.errors import Json, bad_param
from meterd.testing.fake_stripe.world import World


def set_discounts(
    world: World, owner: Json, given: list[Json] | str, *, customer_id: str, names: Json
) -> None:
    """Replace the discounts of a subscription or an item; an empty string removes all.

    `names` says in the discount whose it is.
    """
    kept: list[str] = []
    for index, each in enumerate(given if isinstance(given, list) else []):
        if "discount" in each:
            kept.append(world.get("discount", each["discount"], param="discounts")["id"])
            continue
        if "coupon" not in each:
            raise bad_param("Only coupons can be applied here.", f"discounts[{index}]")
        where = f"discounts[{index}][coupon]"
        made = _redeem(world, each["coupon"], where, customer_id=customer_id, names=names)
        kept.append(made["id"])
    owner["discounts"] = kept


def give_customer(world: World, customer_id: str, coupon_id: str) -> Json:
    """Put a coupon on a customer, which only the Dashboard and older versions of the API do."""
    customer = world.get("customer", customer_id, param="customer")
    customer["discount"] = _redeem(
        world, coupon_id, "coupon", customer_id=customer_id, names={"subscription": None}
    )
    found: Json = customer["discount"]
    return found


def take_from_customer(world: World, customer_id: str) -> Json:
    """Take a customer's coupon away; returns what Stripe answers."""
    customer = world.get("customer", customer_id)
    found: Json | None = customer["discount"]
    if found is None:
        raise bad_param("No active discount for this customer.", "customer")
    customer["discount"] = None
    world.emit("customer.discount.deleted", found)
    return {**found, "deleted": True}


def _redeem(world: World, coupon_id: str, where: str, *, customer_id: str, names: Json) -> Json:
    coupon = world.get("coupon", coupon_id, param=where)
    coupon["times_redeemed"] += 1
    record = shapes.discount(
        world.new_id("di"), coupon_id=coupon["id"], customer_id=customer_id, start_s=world.now_s
    )
    record.update(names)
    if coupon["duration"] == "repeating":
        record["end"] = add_intervals(world.now_s, "month", coupon["duration_in_months"])
    world.add(record)
    world.emit("customer.discount.created", record)
    return record


def living(world: World, discount_ids: list[str]) -> list[str]:
    """Return those of the discounts that have not ended."""
    return [each for each in discount_ids if not has_ended(world, each)]


def has_ended(world: World, discount_id: str) -> bool:
    """Tell whether a discount's months are over."""
    end_s = world.get("discount", discount_id)["end"]
    return end_s is not None and end_s <= world.now_s


def of_invoice(world: World, subscription: Json | None, customer: Json) -> list[str]:
    """Return what a new invoice takes over: the subscription's, else its customer's."""
    own = [] if subscription is None else living(world, subscription["discounts"])
    inherited = [] if customer["discount"] is None else [customer["discount"]["id"]]
    return own or living(world, inherited)


def deduct(world: World, invoice: Json, lines: list[Json]) -> int:
    """Take the lines' own coupons off them, then the invoice's; returns the cents taken off."""
    totals: dict[str, int] = {}
    for line in lines:
        line["discount_amounts"] = []
        for discount_id in line["discounts"]:
            taken = _take(world, discount_id, [line])
            totals[discount_id] = totals.get(discount_id, 0) + taken
    for discount_id in invoice["discounts"]:
        totals[discount_id] = totals.get(discount_id, 0) + _take(world, discount_id, lines)
    invoice["total_discount_amounts"] = [
        {"amount": amount, "discount": discount_id} for discount_id, amount in totals.items()
    ]
    return sum(totals.values())


def _take(world: World, discount_id: str, lines: list[Json]) -> int:
    """Deduct one coupon, exact to the cent per line."""
    coupon = world.find(world.get("discount", discount_id)["source"]["coupon"])
    assert coupon is not None, discount_id
    products = world.hidden.applies_to.get(coupon["id"])
    left = coupon["amount_off"] or 0
    taken = 0
    for line in lines:
        open_cents = line["amount"] - sum(each["amount"] for each in line["discount_amounts"])
        is_meant = products is None or _product(line) in products["products"]
        if not line["discountable"] or open_cents <= 0 or not is_meant:
            continue
        if coupon["percent_off"] is not None:
            # Percentages have up to two decimals: in hundredths they are whole numbers.
            hundredths = round(coupon["percent_off"] * 100)
            off = (open_cents * hundredths + 5_000) // 10_000
        else:
            off = min(left, open_cents)
            left -= off
        line["discount_amounts"].append({"amount": off, "discount": discount_id})
        taken += off
    return taken


def _product(line: Json) -> str | None:
    details = (line["pricing"] or {}).get("price_details")
    return details["product"] if details else None


def spend(world: World, invoice: Json, subscription: Json | None) -> None:
    """Remove what was for one invoice only, or has ended, from where it came from."""
    customer = world.get("customer", invoice["customer"])
    if subscription is not None:
        for owner in (subscription, *subscription["items"]["data"]):
            for discount_id in list(owner["discounts"]):
                if _is_spent(world, discount_id):
                    owner["discounts"].remove(discount_id)
                    world.emit("customer.discount.deleted", world.get("discount", discount_id))
    given = customer["discount"]
    if given is not None and given["id"] in invoice["discounts"] and _is_spent(world, given["id"]):
        take_from_customer(world, customer["id"])


def _is_spent(world: World, discount_id: str) -> bool:
    coupon = world.find(world.get("discount", discount_id)["source"]["coupon"])
    is_once = coupon is not None and coupon["duration"] == "once"
    return is_once or has_ended(world, discount_id)
