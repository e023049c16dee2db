"""`/admin/v1/stripe/events`: the inbox of Stripe's events, for operators. Scope `admin`."""

from __future__ import annotations

from quart import Blueprint, Response

from meterd.web.book_shapes import Retried, inbox_object
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
    data = [inbox_object(entry) for entry in found[:limit]]
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
    return response(json_reply(202, Retried(id=event_id, state="pending")))
