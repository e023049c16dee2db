"""Handlers of customers, products, prices and coupons."""

from __future__ import annotations

import copy
from decimal import Decimal

from meterd.testing.fake_stripe import discounts, shapes, standing
from meterd.testing.fake_stripe.errors import Json, bad_param, missing_param
from meterd.testing.fake_stripe.pages import matching, page
from meterd.testing.fake_stripe.world import World, merge_metadata


DECLINING_METHODS = (
    "pm_card_chargeCustomerFail",
    "pm_card_chargeDeclined",
    "pm_card_visa_chargeDeclined",
)
"""Stripe's own test payment methods whose later charges fail."""

CUSTOMER_FIELDS = (
    "description",
    "email",
    "name",
    "phone",
    "address",
    "shipping",
    "preferred_locales",
)


def _apply(record: Json, params: Json, names: tuple[str, ...]) -> None:
    for name in names:
        if name in params:
            record[name] = params[name] if params[name] != "" else None
    if "metadata" in params:
        merge_metadata(record, params["metadata"])


def _apply_customer(world: World, record: Json, params: Json) -> None:
    given = {**params}
    for name in ("address", "shipping"):
        if isinstance(given.get(name), dict):
            given[name] = {**(record[name] or {}), **given[name]}
    if isinstance(given.get("address"), dict):
        parts = ("city", "country", "line1", "line2", "postal_code", "state")
        given["address"] = {part: given["address"].get(part) for part in parts}
    _apply(record, given, CUSTOMER_FIELDS)
    if "balance" in params:
        record["balance"] = params["balance"]
    method = params.get("payment_method")
    method = params.get("invoice_settings", {}).get("default_payment_method", method)
    if method is not None:
        record["invoice_settings"]["default_payment_method"] = method or None
        outcome = "fail" if method in DECLINING_METHODS else "succeed"
        world.hidden.payments[record["id"]] = outcome if method else "none"


def create_customer(world: World, params: Json) -> Json:
    """POST /v1/customers."""
    record = shapes.customer(
        world.new_id("cus"), now_s=world.now_s, livemode=world.settings.livemode
    )
    _apply_customer(world, record, params)
    world.add(record)
    world.emit("customer.created", record)
    return record


def update_customer(world: World, params: Json, customer_id: str) -> Json:
    """POST /v1/customers/{id}."""
    record = world.get("customer", customer_id)
    before = copy.deepcopy(record)
    _apply_customer(world, record, params)
    world.changed("customer.updated", record, before)
    return record


def retrieve_customer(world: World, _params: Json, customer_id: str) -> Json:
    """GET /v1/customers/{id}; a deleted one answers with its stub."""
    return world.get("customer", customer_id)


def delete_customer(world: World, _params: Json, customer_id: str) -> Json:
    """DELETE /v1/customers/{id}: its subscriptions end with it."""
    record = world.get("customer", customer_id)
    for subscription in list(world.table("subscription").values()):
        if subscription["customer"] == customer_id and subscription["status"] not in standing.ENDED:
            standing.end(world, subscription, reason="cancellation_requested")
    world.emit("customer.deleted", record)
    gone = {"id": customer_id, "object": "customer", "deleted": True}
    world.table("customer")[customer_id] = gone
    return gone


def delete_customer_discount(world: World, _params: Json, customer_id: str) -> Json:
    """DELETE /v1/customers/{id}/discount."""
    return discounts.take_from_customer(world, customer_id)


def list_customers(world: World, params: Json) -> Json:
    """GET /v1/customers."""
    living = [each for each in world.newest_first("customer") if not each.get("deleted")]
    return page("/v1/customers", matching(living, params, "email"), params)


PRODUCT_FIELDS = (
    "active",
    "default_price",
    "description",
    "name",
    "statement_descriptor",
    "unit_label",
    "url",
)


def create_product(world: World, params: Json) -> Json:
    """POST /v1/products."""
    if "name" not in params:
        raise missing_param("name")
    record = shapes.product(
        params.get("id") or world.new_id("prod"),
        name=params["name"],
        now_s=world.now_s,
        livemode=world.settings.livemode,
    )
    _apply(record, params, PRODUCT_FIELDS)
    world.add(record)
    world.emit("product.created", record)
    return record


def update_product(world: World, params: Json, product_id: str) -> Json:
    """POST /v1/products/{id}."""
    record = world.get("product", product_id)
    before = copy.deepcopy(record)
    _apply(record, params, PRODUCT_FIELDS)
    world.changed("product.updated", record, before)
    return record


def retrieve_product(world: World, _params: Json, product_id: str) -> Json:
    """GET /v1/products/{id}."""
    return world.get("product", product_id)


def list_products(world: World, params: Json) -> Json:
    """GET /v1/products."""
    found = matching(world.newest_first("product"), params, "active")
    wanted = params.get("ids")
    if wanted is not None:
        found = [each for each in found if each["id"] in wanted]
    return page("/v1/products", found, params)


def create_price(world: World, params: Json) -> Json:
    """POST /v1/prices."""
    if "product" in params:
        product_id = world.get("product", params["product"], param="product")["id"]
    elif "product_data" in params:
        product_id = create_product(world, {"name": params["product_data"]["name"]})["id"]
    else:
        raise missing_param("product")
    amount = params.get("unit_amount")
    exact = params.get("unit_amount_decimal")
    if (amount is None) == (exact is None):
        raise bad_param(
            "Exactly one of unit_amount and unit_amount_decimal is needed.", "unit_amount"
        )
    if exact is None:
        exact = Decimal(params["unit_amount"])
    elif exact == int(exact):
        amount = int(exact)
    record = shapes.price(
        world.new_id("price"),
        product_id=product_id,
        currency=params["currency"].lower(),
        now_s=world.now_s,
        livemode=world.settings.livemode,
    )
    record["unit_amount"] = amount
    record["unit_amount_decimal"] = str(exact)
    if "recurring" in params:
        record["type"] = "recurring"
        record["recurring"] = {
            "interval": params["recurring"]["interval"],
            "interval_count": params["recurring"].get("interval_count", 1),
            "meter": None,
            "trial_period_days": None,
            "usage_type": "licensed",
        }
    _apply_price(world, record, params)
    world.add(record)
    world.emit("price.created", record)
    return record


def _apply_price(world: World, record: Json, params: Json) -> None:
    key = params.get("lookup_key")
    if key:
        for other in world.table("price").values():
            if other["lookup_key"] == key and other is not record:
                if not params.get("transfer_lookup_key"):
                    raise bad_param(f"A price already uses lookup key `{key}`.", "lookup_key")
                other["lookup_key"] = None
    _apply(record, params, ("active", "lookup_key", "nickname", "tax_behavior"))


def update_price(world: World, params: Json, price_id: str) -> Json:
    """POST /v1/prices/{id}."""
    record = world.get("price", price_id)
    before = copy.deepcopy(record)
    _apply_price(world, record, params)
    world.changed("price.updated", record, before)
    return record


def retrieve_price(world: World, _params: Json, price_id: str) -> Json:
    """GET /v1/prices/{id}."""
    return world.get("price", price_id)


def list_prices(world: World, params: Json) -> Json:
    """GET /v1/prices."""
    found = matching(world.newest_first("price"), params, "active", "product", "currency", "type")
    keys = params.get("lookup_keys")
    if keys is not None:
        found = [each for each in found if each["lookup_key"] in keys]
    return page("/v1/prices", found, params)


def create_coupon(world: World, params: Json) -> Json:
    """POST /v1/coupons."""
    if ("percent_off" in params) == ("amount_off" in params):
        raise bad_param("Exactly one of percent_off and amount_off is needed.", "percent_off")
    if params.get("duration") == "repeating" and "duration_in_months" not in params:
        raise missing_param("duration_in_months")
    record = shapes.coupon(
        params.get("id") or world.new_id("coupon").removeprefix("coupon_"),
        now_s=world.now_s,
        livemode=world.settings.livemode,
    )
    if "percent_off" in params:
        record["percent_off"] = float(params["percent_off"])
    if "applies_to" in params:
        world.hidden.applies_to[record["id"]] = params["applies_to"]
    _apply(record, params, ("amount_off", "currency", "duration", "duration_in_months", "name"))
    world.add(record)
    world.emit("coupon.created", record)
    return record


def retrieve_coupon(world: World, _params: Json, coupon_id: str) -> Json:
    """GET /v1/coupons/{id}."""
    return world.get("coupon", coupon_id)


def delete_coupon(world: World, _params: Json, coupon_id: str) -> Json:
    """DELETE /v1/coupons/{id}: who has it keeps it, and nobody gets it any more."""
    record = world.get("coupon", coupon_id)
    world.hidden.deleted_coupons.add(coupon_id)
    world.emit("coupon.deleted", record)
    return {"id": coupon_id, "object": "coupon", "deleted": True}


def list_coupons(world: World, params: Json) -> Json:
    """GET /v1/coupons."""
    gone = world.hidden.deleted_coupons
    found = [each for each in world.newest_first("coupon") if each["id"] not in gone]
    return page("/v1/coupons", found, params)
