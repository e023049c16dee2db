"""`/admin/v1/stripe/events`: the inbox of Stripe's events, for operators. Scope `admin`."""

from __future__ import annotations

from typing import Any

from quart import Blueprint, Response

from meterd.core.units import rfc3339
from meterd.observe.log import masked
from meterd.ports.stripe import InboxEntry
from meterd.web.problems import ProblemError
from meterd.web.reply import json_reply
from meterd.web.requests import (
    choice_in,
    cursor_in,
    limit_in,
    make_cursor,
    operator,
    query,
    response,
    services,
)
from meterd.web.shapes import Page
from meterd.web.trail import note


admin_stripe = Blueprint("admin_stripe", __name__, url_prefix="/admin/v1/stripe")

STATES = ("pending", "done", "dead")


@admin_stripe.get("/events")
async def list_events() -> Response:
    """Return events, newest first, `?state=pending|done|dead`; their payloads stay here."""
    await operator()
    store = services().stripe_store
    if store is None:
        raise ProblemError("not_found")
    parameters = query("state", "limit", "cursor")
    limit = limit_in(parameters)
    state = choice_in(parameters, "state", STATES)
    position = cursor_in(parameters, (int, str))
    after = None if position is None else (position[0], position[1])
    found = await store.inbox(state=state, after=after, limit=limit + 1)
    data = [entry_object(entry) for entry in found[:limit]]
    last = found[limit - 1] if len(found) > limit else None
    cursor = None if last is None else make_cursor(last.received_at_ms, last.id)
    return response(json_reply(200, Page(data=data, next_cursor=cursor)))


@admin_stripe.post("/events/<event_id>/retry")
async def retry_event(event_id: str) -> Response:
    """Work an event off again, dead or done; its objects are read anew."""
    by = await operator()
    bundle = services()
    actor = bundle.stripe_actor
    if actor is None:
        raise ProblemError("event_unknown")
    if bundle.trail is not None:
        await note(bundle, actor=by, action="stripe.retry", after={"event_id": event_id[:128]})
    if not await actor.retry(event_id):
        raise ProblemError("event_unknown")
    return response(json_reply(202, {"id": event_id, "state": "pending"}))


def entry_object(entry: InboxEntry) -> dict[str, Any]:
    """Return an event as operators see it."""
    return {
        "id": entry.id,
        "type": entry.type,
        "state": entry.state,
        "outcome": entry.outcome,
        "livemode": entry.livemode,
        "subscription_id": entry.subscription_id,
        "customer_id": entry.customer_id,
        "invoice_id": entry.invoice_id,
        "created_at": rfc3339(entry.created_at_ms),
        "received_at": rfc3339(entry.received_at_ms),
        "attempts": entry.attempts,
        "next_attempt_at": rfc3339(entry.next_attempt_at_ms) if entry.state == "pending" else None,
        "last_error": None if entry.last_error is None else masked(entry.last_error),
    }
