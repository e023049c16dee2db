"""Handlers of webhook endpoints and events."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fnmatch import fnmatchcase

from meterd.testing.fake_stripe import hosted_shapes
from meterd.testing.fake_stripe.errors import Json, bad_param, missing_object
from meterd.testing.fake_stripe.pages import page
from meterd.testing.fake_stripe.world import API_VERSION, World, merge_metadata


def new_secret(world: World) -> str:
    """Return a signing secret in Stripe's form."""
    return "whsec_" + world.new_id("x").removeprefix("x_1") + world.new_id("x").removeprefix("x_1")


def create_endpoint(world: World, params: Json, *, secret: str | None = None) -> Json:
    """POST /v1/webhook_endpoints; only this answer shows the secret."""
    if not params["url"].startswith(("http://", "https://")):
        raise bad_param("Not a valid URL", "url", code="url_invalid")
    record = hosted_shapes.webhook_endpoint(
        world.new_id("we"), url=params["url"], now_s=world.now_s, livemode=world.settings.livemode
    )
    record["enabled_events"] = list(params["enabled_events"])
    record["api_version"] = params.get("api_version", API_VERSION)
    record["description"] = params.get("description") or None
    if "metadata" in params:
        merge_metadata(record, params["metadata"])
    world.hidden.secrets[record["id"]] = [(secret or new_secret(world), None)]
    world.add(record)
    return {**record, "secret": world.hidden.secrets[record["id"]][0][0]}


def update_endpoint(world: World, params: Json, endpoint_id: str) -> Json:
    """POST /v1/webhook_endpoints/{id}."""
    record = world.get("webhook_endpoint", endpoint_id)
    for name in ("url", "enabled_events", "description"):
        if name in params:
            record[name] = params[name] or None
    if "disabled" in params:
        record["status"] = "disabled" if params["disabled"] else "enabled"
    if "metadata" in params:
        merge_metadata(record, params["metadata"])
    return record


def retrieve_endpoint(world: World, _params: Json, endpoint_id: str) -> Json:
    """GET /v1/webhook_endpoints/{id}."""
    return world.get("webhook_endpoint", endpoint_id)


def delete_endpoint(world: World, _params: Json, endpoint_id: str) -> Json:
    """DELETE /v1/webhook_endpoints/{id}."""
    world.get("webhook_endpoint", endpoint_id)
    del world.table("webhook_endpoint")[endpoint_id]
    return {"id": endpoint_id, "object": "webhook_endpoint", "deleted": True}


def list_endpoints(world: World, params: Json) -> Json:
    """GET /v1/webhook_endpoints."""
    return page("/v1/webhook_endpoints", world.newest_first("webhook_endpoint"), params)


def roll_secret(world: World, endpoint_id: str, *, keeps_old_s: int) -> str:
    """Give an endpoint a new secret; the old one signs beside it for a while (Stripe: ≤24 h)."""
    world.get("webhook_endpoint", endpoint_id)
    fresh = new_secret(world)
    kept = [(old, world.now_s + keeps_old_s) for old, _ in world.hidden.secrets[endpoint_id][:1]]
    world.hidden.secrets[endpoint_id] = [(fresh, None), *kept]
    return fresh


def retrieve_event(world: World, _params: Json, event_id: str) -> Json:
    """GET /v1/events/{id}, for 30 days."""
    event = world.get("event", event_id)
    if event["created"] < world.now_s - world.settings.events_kept_s:
        raise missing_object("event", event_id)
    return copy.deepcopy(event)


def events_lister(was_delivered: Callable[[str], bool]) -> Callable[[World, Json], Json]:
    """GET /v1/events, which must know what reached the endpoints."""

    def list_events(world: World, params: Json) -> Json:
        oldest_s = world.now_s - world.settings.events_kept_s
        found = [each for each in world.newest_first("event") if each["created"] >= oldest_s]
        wanted = params.get("types", [params["type"]] if "type" in params else ["*"])
        found = [each for each in found if any(fnmatchcase(each["type"], name) for name in wanted)]
        if "delivery_success" in params:
            success = params["delivery_success"]
            found = [each for each in found if was_delivered(each["id"]) == success]
        return page("/v1/events", found, params)

    return list_events
