"""What a mirrored subscription costs, read from Stripe's JSON: items and discounts.

Discounts are on the items, on the subscription and on its customer, as objects with their coupon,
or, in older shapes, one as the single `discount` of the subscription. One that is only an id, or
an amount in another currency, says nothing about this subscription and is told to be unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation

from meterd.core.revenue import Discount, PricedSubscription, RecurringItem
from meterd.core.stripe_objects import Json, read_subscription
from meterd.core.subscription import Subscription
from meterd.core.units import SECOND_MS


PERCENT_MAX = 100


def read_priced(object_json: str) -> PricedSubscription | None:
    """Return a subscription's value, or None when this is not one. Errors: ValueError, not JSON."""
    found = json.loads(object_json)
    subscription = read_subscription(found) if isinstance(found, dict) else None
    if subscription is None:
        return None
    currency = subscription.currency
    return PricedSubscription(
        id=subscription.id,
        status=subscription.status,
        ends_at_ms=_end_ms(subscription),
        currency=currency,
        items=tuple(
            RecurringItem(
                unit_amount_cents=item.price.unit_amount_cents,
                quantity=item.quantity,
                interval=item.price.interval,
                interval_count=item.price.interval_count,
                is_metered=item.price.is_metered,
                product_id=item.price.product_id,
                discounts=tuple(_discounts(listed, currency)),
            )
            for item, listed in zip(subscription.items, _items(found), strict=True)
        ),
        discounts=tuple(_discounts(found, currency)),
        customer_discounts=tuple(_discounts(_part(found, "customer"), currency)),
    )


def _end_ms(subscription: Subscription) -> int | None:
    ends_ms = max((item.end_ms for item in subscription.items), default=0)
    if subscription.cancel_at_period_end and ends_ms:
        return ends_ms
    return subscription.cancel_at_ms


def _part(found: Json, name: str) -> Json:
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def _items(subscription: Json) -> list[Json]:
    """Return the items in the order in which `read_subscription` has read them."""
    listed = _part(subscription, "items").get("data")
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _discounts(owner: Json, currency: str) -> Iterator[Discount]:
    """Yield the discounts of a subscription, an item or a customer, in Stripe's order."""
    found = owner.get("discounts")
    listed = list(found) if isinstance(found, list) else []
    single = owner.get("discount")
    for each in listed or ([single] if single else []):
        yield _discount(each, currency) if isinstance(each, dict) else Discount()


def _discount(found: Json, currency: str) -> Discount:
    coupon = _part(_part(found, "source"), "coupon") or _part(found, "coupon")
    percent_off, end = _percentage(coupon.get("percent_off")), found.get("end")
    listed = _part(coupon, "applies_to").get("products")
    products = frozenset(map(str, listed)) if isinstance(listed, list) else frozenset()
    return Discount(
        percent_off=percent_off,
        amount_off_cents=_amount(coupon, currency) if percent_off is None else None,
        products=products or None,
        is_once=coupon.get("duration") == "once",
        ends_at_ms=end * SECOND_MS if isinstance(end, int) else None,
    )


def _amount(coupon: Json, currency: str) -> int | None:
    """Return what a coupon takes off an invoice in a currency; None: it does not say."""
    is_own = coupon.get("currency") in {None, currency}
    told = coupon if is_own else _part(_part(coupon, "currency_options"), currency)
    amount = told.get("amount_off")
    return amount if isinstance(amount, int) and not isinstance(amount, bool) else None


def _percentage(value: object) -> Decimal | None:
    """Return a percentage, which comes as a number or as text; None: it is neither."""
    try:
        percent = Decimal(str(value))
    except InvalidOperation:
        return None
    return percent if percent.is_finite() and 0 <= percent <= PERCENT_MAX else None
