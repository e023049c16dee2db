"""Blank Stripe objects: every field the current API version sends, with its resting value.

Held to the annotations of the `stripe` package by tests/unit/testing/test_fake_stripe_shapes.py;
when the pin moves, that test says which fields came or went.
"""

from __future__ import annotations

from typing import Any

from meterd.testing.fake_stripe.errors import Json


def list_of(url: str, data: list[Json], *, has_more: bool = False) -> Json:
    """Return a page of objects."""
    return {"object": "list", "data": data, "has_more": has_more, "url": url}


def customer(customer_id: str, *, now_s: int, livemode: bool) -> Json:
    """Return a customer about whom nothing is known yet."""
    return {
        "id": customer_id,
        "object": "customer",
        "address": None,
        "balance": 0,
        "business_name": None,
        "created": now_s,
        "currency": None,
        "customer_account": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "individual_name": None,
        "invoice_prefix": customer_id[-8:].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": livemode,
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }


def product(product_id: str, *, name: str, now_s: int, livemode: bool) -> Json:
    """Return an active service."""
    return {
        "id": product_id,
        "object": "product",
        "active": True,
        "created": now_s,
        "default_price": None,
        "description": None,
        "images": [],
        "livemode": livemode,
        "marketing_features": [],
        "metadata": {},
        "name": name,
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": None,
        "tax_code": None,
        "tax_details": None,
        "type": "service",
        "unit_label": None,
        "updated": now_s,
        "url": None,
    }


def price(price_id: str, *, product_id: str, currency: str, now_s: int, livemode: bool) -> Json:
    """Return a price without amount or interval."""
    return {
        "id": price_id,
        "object": "price",
        "active": True,
        "billing_scheme": "per_unit",
        "created": now_s,
        "currency": currency,
        "custom_unit_amount": None,
        "livemode": livemode,
        "lookup_key": None,
        "metadata": {},
        "nickname": None,
        "product": product_id,
        "recurring": None,
        "tax_behavior": "unspecified",
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "one_time",
        "unit_amount": None,
        "unit_amount_decimal": None,
    }


def plan_of(price_of_item: Json) -> Json:
    """Return the legacy `plan` view of a recurring price, still on every subscription item."""
    recurring = price_of_item["recurring"]
    return {
        "id": price_of_item["id"],
        "object": "plan",
        "active": price_of_item["active"],
        "amount": price_of_item["unit_amount"],
        "amount_decimal": price_of_item["unit_amount_decimal"],
        "billing_scheme": price_of_item["billing_scheme"],
        "created": price_of_item["created"],
        "currency": price_of_item["currency"],
        "interval": recurring["interval"],
        "interval_count": recurring["interval_count"],
        "livemode": price_of_item["livemode"],
        "metadata": dict(price_of_item["metadata"]),
        "meter": None,
        "nickname": price_of_item["nickname"],
        "product": price_of_item["product"],
        "tiers_mode": None,
        "transform_usage": None,
        "trial_period_days": recurring["trial_period_days"],
        "usage_type": recurring["usage_type"],
    }


def subscription_item(item_id: str, *, subscription_id: str, now_s: int) -> Json:
    """Return an item without price or period."""
    return {
        "id": item_id,
        "object": "subscription_item",
        "billed_until": None,
        "billing_thresholds": None,
        "created": now_s,
        "current_period_end": 0,
        "current_period_start": 0,
        "discounts": [],
        "metadata": {},
        "plan": None,
        "price": None,
        "quantity": 1,
        "subscription": subscription_id,
        "tax_rates": [],
    }


def subscription(subscription_id: str, *, customer_id: str, now_s: int, livemode: bool) -> Json:
    """Return a subscription without items."""
    return {
        "id": subscription_id,
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"enabled": False, "liability": None, "disabled_reason": None},
        "billing_cycle_anchor": now_s,
        "billing_cycle_anchor_config": None,
        "billing_mode": {
            "type": "flexible",
            "flexible": {"proration_discounts": "included"},
            "updated_at": now_s,
        },
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {
            "comment": None,
            "feedback": None,
            "feedback_option": None,
            "reason": None,
        },
        "collection_method": "charge_automatically",
        "created": now_s,
        "currency": "usd",
        "customer": customer_id,
        "customer_account": None,
        "days_until_due": None,
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {
            "account_tax_ids": None,
            "custom_fields": None,
            "description": None,
            "footer": None,
            "issuer": {"type": "self"},
        },
        "items": list_of(f"/v1/subscription_items?subscription={subscription_id}", []),
        "latest_invoice": None,
        "livemode": livemode,
        "managed_payments": {"enabled": False},
        "metadata": {},
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": now_s,
        "status": "incomplete",
        "status_details": None,
        "test_clock": None,
        "transfer_data": None,
        "trial_end": None,
        "trial_settings": {
            "end_behavior": {
                "billing_cycle_anchor": "now",
                "missing_payment_method": "create_invoice",
            }
        },
        "trial_start": None,
    }


def invoice(invoice_id: str, *, customer_of_it: Json, now_s: int, account_name: str) -> Json:
    """Return an empty draft."""
    return {
        "id": invoice_id,
        "object": "invoice",
        "account_country": "US",
        "account_name": account_name,
        "account_tax_ids": None,
        "amount_due": 0,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_paid_off_stripe": 0,
        "amount_remaining": 0,
        "amount_shipping": 0,
        "application": None,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": False,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "automatically_finalizes_at": None,
        "billing_reason": "manual",
        "collection_method": "charge_automatically",
        "created": now_s,
        "currency": "usd",
        "custom_fields": None,
        "customer": customer_of_it["id"],
        "customer_account": None,
        "customer_address": customer_of_it["address"],
        "customer_email": customer_of_it["email"],
        "customer_name": customer_of_it["name"],
        "customer_phone": customer_of_it["phone"],
        "customer_shipping": None,
        "customer_tax_exempt": "none",
        "customer_tax_ids": [],
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "due_date": None,
        "effective_at": None,
        "ending_balance": None,
        "footer": None,
        "from_invoice": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "latest_revision": None,
        "lines": list_of(f"/v1/invoices/{invoice_id}/lines", []),
        "livemode": customer_of_it["livemode"],
        "metadata": {},
        "next_payment_attempt": None,
        "number": None,
        "on_behalf_of": None,
        "parent": None,
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": now_s,
        "period_start": now_s,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "receipt_number": None,
        "rendering": None,
        "shipping_cost": None,
        "shipping_details": None,
        "starting_balance": 0,
        "statement_descriptor": None,
        "status": "draft",
        "status_details": None,
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": 0,
        "subtotal_excluding_tax": 0,
        "test_clock": None,
        "total": 0,
        "total_discount_amounts": [],
        "total_excluding_tax": 0,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
        "webhooks_delivered_at": None,
    }


def pricing_of(price_of_line: Json | None, unit_amount_decimal: str) -> Json:
    """How a line or an invoice item got its amount."""
    details = None
    if price_of_line is not None:
        details = {"price": price_of_line["id"], "product": price_of_line["product"]}
    return {
        "price_details": details,
        "type": "price_details",
        "unit_amount_decimal": unit_amount_decimal,
    }


def invoice_line(line_id: str, *, invoice_id: str, livemode: bool, **facts: Any) -> Json:
    """Return a line with the given facts over the resting values."""
    line = {
        "id": line_id,
        "object": "line_item",
        "amount": 0,
        "currency": "usd",
        "description": None,
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": invoice_id,
        "livemode": livemode,
        "metadata": {},
        "parent": None,
        "period": {"end": 0, "start": 0},
        "pretax_credit_amounts": [],
        "pricing": None,
        "quantity": 1,
        "quantity_decimal": "1",
        "subscription": None,
        "subtotal": 0,
        "taxes": [],
    }
    line.update(facts)
    return line


def invoice_item(item_id: str, *, customer_id: str, now_s: int, livemode: bool) -> Json:
    """Return a pending item of no amount."""
    return {
        "id": item_id,
        "object": "invoiceitem",
        "amount": 0,
        "currency": "usd",
        "customer": customer_id,
        "customer_account": None,
        "date": now_s,
        "description": None,
        "discountable": True,
        "discounts": [],
        "frozen_fields": [],
        "invoice": None,
        "invoicing_rules": None,
        "livemode": livemode,
        "metadata": {},
        "net_amount": 0,
        "parent": None,
        "period": {"end": now_s, "start": now_s},
        "pricing": pricing_of(None, "0"),
        "proration": False,
        "proration_details": None,
        "quantity": 1,
        "quantity_decimal": "1",
        "tax_rates": [],
        "test_clock": None,
    }


def coupon(coupon_id: str, *, now_s: int, livemode: bool) -> Json:
    """Return a coupon that takes nothing off yet."""
    return {
        "id": coupon_id,
        "object": "coupon",
        "amount_off": None,
        "created": now_s,
        "currency": None,
        "duration": "once",
        "duration_in_months": None,
        "livemode": livemode,
        "max_redemptions": None,
        "metadata": {},
        "name": None,
        "percent_off": None,
        "redeem_by": None,
        "times_redeemed": 0,
        "valid": True,
    }


def discount(discount_id: str, *, coupon_id: str, customer_id: str, start_s: int) -> Json:
    """Return a coupon in use."""
    return {
        "id": discount_id,
        "object": "discount",
        "checkout_session": None,
        "customer": customer_id,
        "customer_account": None,
        "end": None,
        "invoice": None,
        "invoice_item": None,
        "promotion_code": None,
        "source": {"coupon": coupon_id, "type": "coupon"},
        "start": start_s,
        "subscription": None,
        "subscription_item": None,
    }
