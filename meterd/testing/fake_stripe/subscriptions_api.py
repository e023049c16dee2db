"""Handlers of subscriptions and their items."""

from __future__ import annotations

from meterd.testing.fake_stripe import changes, proration, standing, subscriptions
from meterd.testing.fake_stripe.errors import Json, StripeRefusedError, bad_param
from meterd.testing.fake_stripe.pages import matching, page
from meterd.testing.fake_stripe.world import World


def create_subscription(world: World, params: Json) -> Json:
    """POST /v1/subscriptions."""
    return subscriptions.create(world, params)


def retrieve_subscription(world: World, _params: Json, subscription_id: str) -> Json:
    """GET /v1/subscriptions/{id}."""
    return world.get("subscription", subscription_id)


def update_subscription(world: World, params: Json, subscription_id: str) -> Json:
    """POST /v1/subscriptions/{id}."""
    return changes.update(world, world.get("subscription", subscription_id), params)


def cancel_subscription(world: World, params: Json, subscription_id: str) -> Json:
    """DELETE /v1/subscriptions/{id}."""
    return subscriptions.cancel(world, world.get("subscription", subscription_id), params)


def resume_subscription(world: World, params: Json, subscription_id: str) -> Json:
    """POST /v1/subscriptions/{id}/resume."""
    return subscriptions.resume(world, world.get("subscription", subscription_id), params)


def pause_subscription(world: World, params: Json, subscription_id: str) -> Json:
    """POST /v1/subscriptions/{id}/pause: unused time becomes a pending credit."""
    subscription = world.get("subscription", subscription_id)
    if subscription["status"] not in {"active", "past_due", "trialing"}:
        raise StripeRefusedError(f"A subscription that is {subscription['status']} cannot pause.")
    bills = params.get("bill_for", {}).get("unused_time_from", {"type": "now"})["type"]
    if bills == "now" and subscription["status"] != "trialing":
        for item in subscription["items"]["data"]:
            proration.credit_unused(world, subscription, item, at_s=world.now_s)
    standing.pause(world, subscription, why="pause_requested")
    return subscription


def list_subscriptions(world: World, params: Json) -> Json:
    """GET /v1/subscriptions: canceled ones only with `status`."""
    found = matching(world.newest_first("subscription"), params, "customer", "collection_method")
    wanted = params.get("status")
    if wanted is None:
        found = [each for each in found if each["status"] not in standing.ENDED]
    elif wanted == "ended":
        found = [each for each in found if each["status"] in standing.ENDED]
    elif wanted != "all":
        found = [each for each in found if each["status"] == wanted]
    if "price" in params:
        found = [
            each
            for each in found
            if any(item["price"]["id"] == params["price"] for item in each["items"]["data"])
        ]
    return page("/v1/subscriptions", found, params)


def _item_owner(world: World, item_id: str) -> Json:
    for subscription in world.table("subscription").values():
        if any(item["id"] == item_id for item in subscription["items"]["data"]):
            return subscription
    raise bad_param(f"No such subscription item: '{item_id}'", "id", code="resource_missing")


def _item(subscription: Json, item_id: str) -> Json:
    found: Json = next(each for each in subscription["items"]["data"] if each["id"] == item_id)
    return found


def retrieve_subscription_item(world: World, _params: Json, item_id: str) -> Json:
    """GET /v1/subscription_items/{id}."""
    return _item(_item_owner(world, item_id), item_id)


def update_subscription_item(world: World, params: Json, item_id: str) -> Json:
    """POST /v1/subscription_items/{id}: the same as an update of its subscription."""
    subscription = _item_owner(world, item_id)
    of_item = {"discounts", "metadata", "price", "quantity"}
    given = {name: value for name, value in params.items() if name in of_item}
    rest = {name: value for name, value in params.items() if name not in {*of_item, "expand"}}
    changes.update(world, subscription, {**rest, "items": [{"id": item_id, **given}]})
    return _item(subscription, item_id)


def list_subscription_items(world: World, params: Json) -> Json:
    """GET /v1/subscription_items."""
    subscription = world.get("subscription", params["subscription"], param="subscription")
    return page("/v1/subscription_items", subscription["items"]["data"], params)
