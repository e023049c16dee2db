"""Stripe's JSON into values, tolerant of every shape an object has had.

A webhook payload has the API version of its endpoint, which may be older or newer than the one
meterd asks for: a missing or moved field is looked for where it used to be, and an unknown value
becomes `UNKNOWN`, never an exception. Only an object without an id is not an object.

Moves that matter, all from https://docs.stripe.com/changelog:
2025-03-31 `current_period_*` went from the subscription to its items, `invoice.subscription` to
`invoice.parent.subscription_details.subscription`; 2026-03-25 decimals are text.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import TypeVar

import attrs

from meterd.core.subscription import (
    USD,
    Interval,
    Invoice,
    Item,
    Price,
    Status,
    Subscription,
)
from meterd.core.units import INSTANT_MS_MAX, SECOND_MS


Json = Mapping[str, object]
E = TypeVar("E", bound=enum.Enum)

NOTHING: Json = {}

AMOUNT_DIGITS_MAX = 18
"""More digits no amount has; a power of ten without bounds would be computed in full."""

ID_CHARACTERS_MAX = 255
"""Stripe's own limit for ids. https://docs.stripe.com/upgrades"""


@attrs.frozen(kw_only=True)
class StripeEvent:
    """A verified event: which object it is about, and the object as it was then."""

    id: str
    type: str
    livemode: bool
    created_at_ms: int
    """By Stripe's clock, in whole seconds: never used to order what can be read again."""
    subscription_id: str | None
    customer_id: str | None
    invoice_id: str | None
    payload_json: str

    @property
    def object(self) -> Json:
        """Return the object as the event carries it."""
        return _part(_part(json.loads(self.payload_json), "data"), "object")

    @property
    def is_of_connected_account(self) -> bool:
        """Tell whether it happened in an account connected to ours, whose objects are not ours.

        Source: https://docs.stripe.com/api/events/object#event_object-account
        """
        return _text(json.loads(self.payload_json), "account") is not None


def read_event(payload_json: str) -> StripeEvent | None:
    """Return the event a body holds, or None when it is not one. Errors: ValueError, not JSON."""
    body = json.loads(payload_json, parse_constant=_refuse_constant)
    if not isinstance(body, dict) or body.get("object") != "event":
        return None
    event_id, kind = _id(body), _text(body, "type")
    if event_id is None or kind is None or not is_plain(kind):
        return None
    about = _part(_part(body, "data"), "object")
    family = _text(about, "object")
    return StripeEvent(
        id=event_id,
        type=kind,
        livemode=body.get("livemode") is True,
        created_at_ms=_instant(body, "created") or 0,
        subscription_id=_id(about) if family == "subscription" else invoice_subscription(about),
        customer_id=_id(about) if family == "customer" else _reference(about, "customer"),
        invoice_id=_id(about) if family == "invoice" else None,
        payload_json=payload_json,
    )


def invoice_subscription(invoice: Json) -> str | None:
    """Return the subscription an invoice belongs to, where it is now or where it was."""
    return _reference(_details(invoice), "subscription") or _reference(invoice, "subscription")


def _details(invoice: Json) -> Json:
    """Return what an invoice says of its subscription, where it is now or where it was."""
    now = _part(_part(invoice, "parent"), "subscription_details")
    return now or _part(invoice, "subscription_details")


def read_subscription(found: Json) -> Subscription | None:
    """Return a subscription, or None when this is not one."""
    subscription_id, customer_id = _id(found), _reference(found, "customer")
    if subscription_id is None or customer_id is None or found.get("object") != "subscription":
        return None
    created_at_ms = _instant(found, "created") or 0
    return Subscription(
        id=subscription_id,
        customer_id=customer_id,
        status=_member(Status, found.get("status"), Status.UNKNOWN),
        items=tuple(_read_items(found)),
        anchor_ms=_instant(found, "billing_cycle_anchor") or created_at_ms,
        created_at_ms=created_at_ms,
        organization_id=_text(_part(found, "metadata"), "organization_id"),
        currency=_text(found, "currency") or USD,
        cancel_at_period_end=found.get("cancel_at_period_end") is True,
        cancel_at_ms=_instant(found, "cancel_at"),
        is_collection_paused=isinstance(found.get("pause_collection"), dict),
        trial_end_ms=_instant(found, "trial_end"),
        ended_at_ms=_instant(found, "ended_at"),
        discount_ids=_discount_ids(found),
        livemode=found.get("livemode") is True,
    )


def read_invoice(found: Json) -> Invoice | None:
    """Return an invoice, or None when this is not one; failures are told by events."""
    invoice_id, customer_id = _id(found), _reference(found, "customer")
    if invoice_id is None or customer_id is None or found.get("object") != "invoice":
        return None
    return Invoice(
        id=invoice_id,
        subscription_id=invoice_subscription(found),
        customer_id=customer_id,
        status=_text(found, "status") or "draft",
        billing_reason=_text(found, "billing_reason") or "manual",
        attempt_count=_integer(found, "attempt_count") or 0,
        created_at_ms=_instant(found, "created") or 0,
        due_at_ms=_instant(found, "due_date"),
        finalized_at_ms=_instant(_part(found, "status_transitions"), "finalized_at"),
        organization_id=_text(_part(_details(found), "metadata"), "organization_id"),
        livemode=found.get("livemode") is True,
    )


def _read_items(subscription: Json) -> Iterator[Item]:
    for found in _list(_part(subscription, "items"), "data"):
        price = _part(found, "price") or _part(found, "plan")
        start_ms = _instant(found, "current_period_start")
        end_ms = _instant(found, "current_period_end")
        quantity = _integer(found, "quantity")
        yield Item(
            id=_id(found) or "",
            price=_read_price(price),
            quantity=1 if quantity is None else quantity,
            start_ms=start_ms or _instant(subscription, "current_period_start") or 0,
            end_ms=end_ms or _instant(subscription, "current_period_end") or 0,
            discount_ids=_discount_ids(found),
        )


def _discount_ids(owner: Json) -> tuple[str, ...]:
    """Return the ids of discounts, whether they are expanded or not."""
    found = owner.get("discounts")
    listed = found if isinstance(found, list) else []
    ids = (_reference({"discount": each}, "discount") for each in listed)
    return tuple(each for each in ids if each is not None)


def _read_price(found: Json) -> Price:
    recurring = _part(found, "recurring") or found  # a legacy plan has no part of its own
    count = _integer(recurring, "interval_count")
    return Price(
        id=_id(found) or "",
        interval=_member(Interval, recurring.get("interval"), Interval.UNKNOWN),
        interval_count=1 if count is None else count,
        currency=_text(found, "currency") or USD,
        unit_amount_cents=_decimal(found, "unit_amount_decimal", "unit_amount", "amount"),
        tier_hint=_text(_part(found, "metadata"), "meterd_tier"),
        is_metered=recurring.get("usage_type") == "metered",
        product_id=_reference(found, "product"),
    )


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


# --- one field ----------------------------------------------------------------------------------


def _part(found: Json, name: str) -> Json:
    value = found.get(name)
    return value if isinstance(value, dict) else NOTHING


def _list(found: Json, name: str) -> Sequence[Json]:
    value = found.get(name)
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else ()


def _text(found: Json, name: str) -> str | None:
    value = found.get(name)
    return value if isinstance(value, str) and value else None


def _integer(found: Json, name: str) -> int | None:
    value = found.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _instant(found: Json, name: str) -> int | None:
    value = _integer(found, name)
    if value is None or not 0 <= value * SECOND_MS <= INSTANT_MS_MAX:
        return None
    return value * SECOND_MS


def _decimal(found: Json, *names: str) -> Decimal | None:
    for name in names:
        value = found.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            try:
                amount = Decimal(value)
            except InvalidOperation:
                continue
            if amount.is_finite() and abs(amount.adjusted()) <= AMOUNT_DIGITS_MAX:
                return amount
    return None


def is_plain(text: str) -> bool:
    """Tell whether text can be an id or a type of Stripe's: short printable ASCII."""
    return 0 < len(text) <= ID_CHARACTERS_MAX and text.isascii() and text.isprintable()


def _id(found: Json, name: str = "id") -> str | None:
    text = _text(found, name)
    return text if text is not None and is_plain(text) else None


def _reference(found: Json, name: str) -> str | None:
    """Return an id, whether the object it names is expanded or not."""
    return _id(found, name) or _id(_part(found, name))


def _member(kind: type[E], value: object, unknown: E) -> E:
    for member in kind:
        if member.value == value and member is not unknown:
            return member
    return unknown
