"""`expand`: references replaced by the objects they name.

Source: https://docs.stripe.com/api/expanding_objects (at most four levels deep).
"""

from __future__ import annotations

import copy
from typing import Any

from meterd.testing.fake_stripe import shapes, standing
from meterd.testing.fake_stripe.errors import Json, StripeRefusedError
from meterd.testing.fake_stripe.world import World


DEPTH_MAX = 4


FIRST_STEPS = {
    "/v1/customers": {"default_source", "discount", "invoice_settings", "subscriptions"},
    "/v1/products": {"default_price"},
    "/v1/prices": {"product"},
    "/v1/coupons": {"applies_to"},
    "/v1/subscriptions": {"customer", "discounts", "items", "latest_invoice", "schedule"},
    "/v1/subscription_items": {"discounts", "price"},
    "/v1/invoices": {"customer", "discounts", "lines", "parent"},
    "/v1/invoiceitems": {"customer", "invoice"},
    "/v1/checkout/sessions": {"customer", "invoice", "subscription"},
    "/v1/billing_portal/sessions": {"configuration"},
}
"""What a path may begin with; checked before the work, as Stripe does."""


ON_REQUEST = {("coupon", "applies_to"), ("customer", "subscriptions")}
"""Properties that are only sent when they are expanded."""


def check_paths(route_path: str, paths: list[str]) -> None:
    """Refuse a path that cannot be expanded, before anything is done."""
    for path in paths:
        first = path.removeprefix("data.").partition(".")[0]
        if first not in FIRST_STEPS.get(route_path.partition("/{}")[0], set()):
            raise _not_expandable(path)


def _not_expandable(path: str) -> StripeRefusedError:
    return StripeRefusedError(
        f"This property cannot be expanded ({path}).", param="expand", is_validation=True
    )


def expanded(world: World, answer: Json, paths: list[str]) -> Json:
    """Return a copy of the answer with every path expanded."""
    copied = copy.deepcopy(answer)
    for path in paths:
        steps = path.split(".")
        if len(steps) > DEPTH_MAX:  # the `data` of lists counts too
            raise StripeRefusedError(
                f"You cannot expand more than {DEPTH_MAX} levels of a property.", param="expand"
            )
        _expand(world, copied, steps, path)
    return copied


def _expand(world: World, node: Any, steps: list[str], path: str) -> None:
    if isinstance(node, list):
        for each in node:
            _expand(world, each, steps, path)
        return
    if not steps or not isinstance(node, dict):
        return
    name, *rest = steps
    if name not in node:
        if (node.get("object"), name) not in ON_REQUEST:
            raise _not_expandable(path)
        node[name] = _included(world, node, name)
    node[name] = _resolved(world, node[name])
    _expand(world, node[name], rest, path)


def _resolved(world: World, value: Any) -> Any:
    if isinstance(value, list):
        return [_resolved(world, each) for each in value]
    if isinstance(value, str):
        found = world.find(value)
        return copy.deepcopy(found) if found is not None else value
    return value


def _included(world: World, node: Json, name: str) -> Json | None:
    """Return a property that is only sent when asked for."""
    if name == "applies_to":
        return copy.deepcopy(world.hidden.applies_to.get(node["id"]))
    living = [
        subscription
        for subscription in world.newest_first("subscription")
        if subscription["customer"] == node["id"] and subscription["status"] not in standing.ENDED
    ]
    return shapes.list_of(f"/v1/customers/{node['id']}/{name}", copy.deepcopy(living))
