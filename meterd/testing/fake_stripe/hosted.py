"""Pages Stripe hosts: checkout, the billing portal, and what a visitor does there."""

from __future__ import annotations

import copy

from meterd.testing.fake_stripe import (
    changes,
    hosted_shapes,
    items,
    proration,
    standing,
    subscriptions,
)
from meterd.testing.fake_stripe.catalog import create_customer
from meterd.testing.fake_stripe.errors import Json, StripeRefusedError, bad_param, missing_param
from meterd.testing.fake_stripe.pages import matching, page
from meterd.testing.fake_stripe.world import World, merge_metadata


SESSION_FIELDS = (
    "cancel_url",
    "success_url",
    "client_reference_id",
    "customer_email",
    "allow_promotion_codes",
    "locale",
    "billing_address_collection",
    "payment_method_collection",
)


def create_session(world: World, params: Json) -> Json:
    """POST /v1/checkout/sessions, of mode `subscription`."""
    if params.get("mode") != "subscription":
        raise bad_param("Only sessions of mode `subscription` are modelled.", "mode")
    wanted = params.get("line_items")
    if not wanted:
        raise missing_param("line_items")
    record = hosted_shapes.checkout_session(
        world.new_id("cs_test"), now_s=world.now_s, livemode=world.settings.livemode
    )
    total = 0
    for index, each in enumerate(wanted):
        if "price" not in each:
            raise missing_param(f"line_items[{index}][price]")
        price = items.recurring_price(world, each["price"], f"line_items[{index}][price]")
        total += (price["unit_amount"] or 0) * each.get("quantity", 1)
        record["currency"] = price["currency"]
    for name in SESSION_FIELDS:
        if name in params:
            record[name] = params[name]
    if "customer" in params:
        record["customer"] = world.get("customer", params["customer"], param="customer")["id"]
    if "metadata" in params:
        merge_metadata(record, params["metadata"])
    is_trial = "trial_period_days" in params.get("subscription_data", {})
    record["amount_subtotal"] = record["amount_total"] = 0 if is_trial else total
    record["expires_at"] = params.get("expires_at", record["expires_at"])
    record["url"] = f"{world.base_url}/pay/checkout/{record['id']}"
    world.hidden.session_plans[record["id"]] = copy.deepcopy(params)
    world.schedule("expire_session", record["id"], record["expires_at"])
    return world.add(record)


def retrieve_session(world: World, _params: Json, session_id: str) -> Json:
    """GET /v1/checkout/sessions/{id}."""
    return world.get("checkout.session", session_id)


def list_sessions(world: World, params: Json) -> Json:
    """GET /v1/checkout/sessions."""
    found = matching(
        world.newest_first("checkout.session"), params, "customer", "subscription", "status"
    )
    return page("/v1/checkout/sessions", found, params)


def expire_session(world: World, _params: Json, session_id: str) -> Json:
    """POST /v1/checkout/sessions/{id}/expire."""
    record = world.get("checkout.session", session_id)
    if record["status"] != "open":
        raise StripeRefusedError(f"Only open sessions can expire; this one is {record['status']}.")
    record["status"], record["url"] = "expired", None
    world.emit("checkout.session.expired", record)
    return record


def on_session_timer(world: World, session_id: str, _at_s: int) -> None:
    """Twenty-four hours without a visitor."""
    if world.get("checkout.session", session_id)["status"] == "open":
        expire_session(world, {}, session_id)


def complete_session(world: World, session_id: str) -> Json:
    """Let the visitor pay: customer, subscription and paid invoice come to be, in this order.

    A declined card raises and leaves the session open, as the hosted page does.
    """
    record = world.get("checkout.session", session_id)
    if record["status"] != "open":
        raise StripeRefusedError(f"This session is {record['status']}.")
    plan = world.hidden.session_plans[session_id]
    if record["customer"] is None:
        email = record["customer_email"] or "visitor@example.com"
        customer = create_customer(world, {"email": email})
        record["customer"] = customer["id"]
    data = plan.get("subscription_data", {})
    request = {
        "customer": record["customer"],
        "items": [
            {"price": each["price"], "quantity": each.get("quantity", 1)}
            for each in plan["line_items"]
        ],
        "payment_behavior": "error_if_incomplete",
        **{name: data[name] for name in data if name in SUBSCRIPTION_DATA},
    }
    subscription = subscriptions.create(world, request, via_checkout=True)
    customer = world.get("customer", record["customer"])
    record["status"], record["url"] = "complete", None
    record["payment_status"] = "paid" if record["amount_total"] else "no_payment_required"
    record["subscription"] = subscription["id"]
    record["invoice"] = subscription["latest_invoice"]
    record["customer_details"] = {
        "address": None,
        "business_name": None,
        "email": customer["email"],
        "individual_name": None,
        "name": customer["name"],
        "phone": customer["phone"],
        "tax_exempt": "none",
        "tax_ids": [],
    }
    world.emit("checkout.session.completed", record)
    return record


SUBSCRIPTION_DATA = ("metadata", "trial_period_days", "trial_end", "description", "trial_settings")
"""Parts of a session's `subscription_data` that are modelled."""


def _merge_features(record: Json, given: Json) -> None:
    for name, settings in given.items():
        feature = record["features"][name]
        for key, value in settings.items():
            if key == "cancellation_reason":
                feature[key].update(value)
            elif value == "":
                feature[key] = [] if isinstance(feature[key], list) else None
            elif key == "products":
                feature[key] = [
                    {
                        "adjustable_quantity": {"enabled": False, "maximum": None, "minimum": 0},
                        **each,
                    }
                    for each in value
                ]
            else:
                feature[key] = value


def _apply_configuration(record: Json, params: Json) -> None:
    _merge_features(record, params.get("features", {}))
    for name in ("active", "default_return_url", "name"):
        if name in params:
            record[name] = params[name] if params[name] != "" else None
    record["business_profile"].update(params.get("business_profile", {}))
    if "login_page" in params:
        record["login_page"]["enabled"] = params["login_page"]["enabled"]
    if "metadata" in params:
        merge_metadata(record, params["metadata"])


def create_configuration(world: World, params: Json) -> Json:
    """POST /v1/billing_portal/configurations."""
    record = hosted_shapes.portal_configuration(
        world.new_id("bpc"), now_s=world.now_s, livemode=world.settings.livemode
    )
    _apply_configuration(record, params)
    record["is_default"] = not world.table("billing_portal.configuration")
    world.add(record)
    world.emit("billing_portal.configuration.created", record)
    return record


def update_configuration(world: World, params: Json, configuration_id: str) -> Json:
    """POST /v1/billing_portal/configurations/{id}."""
    record = world.get("billing_portal.configuration", configuration_id)
    before = copy.deepcopy(record)
    _apply_configuration(record, params)
    record["updated"] = world.now_s
    world.changed("billing_portal.configuration.updated", record, before)
    return record


def retrieve_configuration(world: World, _params: Json, configuration_id: str) -> Json:
    """GET /v1/billing_portal/configurations/{id}."""
    return world.get("billing_portal.configuration", configuration_id)


def list_configurations(world: World, params: Json) -> Json:
    """GET /v1/billing_portal/configurations."""
    found = matching(
        world.newest_first("billing_portal.configuration"), params, "active", "is_default"
    )
    return page("/v1/billing_portal/configurations", found, params)


def create_portal_session(world: World, params: Json) -> Json:
    """POST /v1/billing_portal/sessions; refused before any configuration exists, as live."""
    if "customer" not in params:
        raise missing_param("customer")
    customer = world.get("customer", params["customer"], param="customer")
    wanted = params.get("configuration")
    if wanted is None:
        defaults = [
            each
            for each in world.table("billing_portal.configuration").values()
            if each["is_default"]
        ]
        if not defaults:
            raise StripeRefusedError(
                "No configuration provided and your default configuration has not been created."
            )
        wanted = defaults[0]["id"]
    record = hosted_shapes.portal_session(
        world.new_id("bps"),
        customer_id=customer["id"],
        now_s=world.now_s,
        livemode=world.settings.livemode,
    )
    configuration = world.get("billing_portal.configuration", wanted, param="configuration")
    record["configuration"] = configuration["id"]
    record["return_url"] = params.get("return_url", configuration["default_return_url"])
    record["url"] = f"{world.base_url}/pay/portal/{record['id']}"
    world.add(record)
    world.emit("billing_portal.session.created", record)
    return record


def change_plan(world: World, session_id: str, price_id: str) -> Json:
    """Let the visitor switch plan in the portal, as its configuration says it is billed.

    A change that costs less is put off to the end of the period when the configuration lists
    `decreasing_item_amount`; others happen at once with its proration and anchor settings.
    """
    session = world.get("billing_portal.session", session_id)
    feature = world.get("billing_portal.configuration", session["configuration"])["features"][
        "subscription_update"
    ]
    if not feature["enabled"]:
        raise StripeRefusedError("This portal does not allow changes of plan.")
    subscription = _living_subscription(world, session["customer"])
    item = subscription["items"]["data"][0]
    price = items.recurring_price(world, price_id, "price")
    conditions = {each["type"] for each in feature["schedule_at_period_end"]["conditions"]}
    costs_less = (price["unit_amount"] or 0) * item["quantity"] < proration.price_of(item)
    if costs_less and "decreasing_item_amount" in conditions:
        before = copy.deepcopy(subscription)
        subscription["schedule"] = world.new_id("sub_sched")
        world.hidden.scheduled_items[subscription["id"]] = [{"id": item["id"], "price": price_id}]
        world.changed("customer.subscription.updated", subscription, before)
        return subscription
    request: Json = {
        "items": [{"id": item["id"], "price": price_id}],
        "proration_behavior": feature["proration_behavior"],
    }
    if feature["billing_cycle_anchor"] == "now":
        request["billing_cycle_anchor"] = {"type": "now"}
    return changes.update(world, subscription, request)


def cancel_in_portal(world: World, session_id: str) -> Json:
    """Let the visitor cancel in the portal, at once or at the end of the period."""
    session = world.get("billing_portal.session", session_id)
    feature = world.get("billing_portal.configuration", session["configuration"])["features"][
        "subscription_cancel"
    ]
    if not feature["enabled"]:
        raise StripeRefusedError("This portal does not allow cancelling.")
    subscription = _living_subscription(world, session["customer"])
    if feature["mode"] == "immediately":
        return subscriptions.cancel(world, subscription, {})
    return changes.update(world, subscription, {"cancel_at_period_end": True})


def _living_subscription(world: World, customer_id: str) -> Json:
    for subscription in world.newest_first("subscription"):
        if subscription["customer"] == customer_id and subscription["status"] not in standing.ENDED:
            return subscription
    raise StripeRefusedError("This customer has no subscription.")
