"""`/v1/webhook-endpoints`: where a customer's systems are told, and what became of it.

Rule 1: a signing secret is shown when its endpoint is made, and never again.
Rule 2: a URL is judged when it is given and its addresses whenever it is used.
"""

from __future__ import annotations

from msgspec import UNSET
from quart import Blueprint, Response

from meterd.actors.publisher import new_secret
from meterd.errors import Problem, RequestInvalidError
from meterd.ports.webhooks import (
    DELIVERED,
    FAILED,
    PENDING,
    Asked,
    EndpointChange,
    WebhookEndpoint,
    WebhookRefusedError,
)
from meterd.web.customer_schema import EndpointPatch, NewEndpointBody
from meterd.web.customer_shapes import delivery_object, endpoint_object, new_endpoint
from meterd.web.idempotency import effect_id
from meterd.web.problems import ProblemError
from meterd.web.reply import Reply, json_reply
from meterd.web.requests import (
    body_as,
    choice_in,
    cursor_in,
    limit_in,
    make_cursor,
    member,
    page_of,
    query,
    response,
    services,
)
from meterd.web.services import WebhookServices
from meterd.web.shapes import Page


MANAGE = "manage"
PREFIX = "/v1/webhook-endpoints"

webhook_endpoints = Blueprint("webhook_endpoints", __name__)


def _hooks() -> WebhookServices:
    found = services().webhooks
    if found is None:
        raise ProblemError("not_found")
    return found


def _check_url(url: str) -> None:
    try:
        _hooks().check_url(url)
    except WebhookRefusedError as error:
        raise RequestInvalidError([Problem("/url", str(error))]) from None


def _asked_by(actor: str) -> Asked:
    bundle = services()
    return Asked(audit_id=bundle.ids.new("aud"), actor=actor, at_ms=bundle.clock.now_ms())


async def _mine(organization_id: str, endpoint_id: str) -> WebhookEndpoint:
    for endpoint in await _hooks().store.endpoints(organization_id):
        if endpoint.id == endpoint_id:
            return endpoint
    raise ProblemError("endpoint_unknown")


def _shown(endpoint: WebhookEndpoint | None) -> Reply:
    if endpoint is None:
        raise ProblemError("endpoint_unknown")
    return json_reply(200, endpoint_object(endpoint))


@webhook_endpoints.get(PREFIX)
async def show_all() -> Response:
    """List the organization's endpoints, oldest first."""
    organization_id, _ = await member(MANAGE)
    parameters = query("limit", "cursor")
    found = await _hooks().store.endpoints(organization_id)
    page, cursor = page_of(found, parameters, place=lambda each: (each.created_at_ms, each.id))
    content = Page(data=[endpoint_object(each) for each in page], next_cursor=cursor)
    return response(json_reply(200, content))


@webhook_endpoints.post(PREFIX)
async def create() -> Response:
    """Make an endpoint; its signing secret is shown this once."""
    organization_id, actor = await member(MANAGE)
    query()
    body = await body_as(NewEndpointBody)
    _check_url(body.url)
    bundle, hooks = services(), _hooks()
    endpoint = WebhookEndpoint(
        id=effect_id(bundle.ids, "whk"),
        organization_id=organization_id,
        url=body.url,
        kinds=tuple(body.kinds),
        description=body.description,
        secret=new_secret(hooks.chance),
        created_at_ms=bundle.clock.now_ms(),
        created_by=actor,
    )
    made = await hooks.store.add_endpoint(endpoint)  # a retry finds the one it made
    if made is None:
        raise ProblemError("too_many_endpoints")
    return response(json_reply(201, new_endpoint(made)))


@webhook_endpoints.get(f"{PREFIX}/<endpoint_id>")
async def show(endpoint_id: str) -> Response:
    """Return one endpoint."""
    organization_id, _ = await member(MANAGE)
    query()
    return response(_shown(await _mine(organization_id, endpoint_id)))


@webhook_endpoints.patch(f"{PREFIX}/<endpoint_id>")
async def change(endpoint_id: str) -> Response:
    """Change what is given; `"disabled": false` takes up deliveries again."""
    organization_id, actor = await member(MANAGE)
    query()
    body = await body_as(EndpointPatch)
    if all(getattr(body, name) is UNSET for name in body.__struct_fields__):
        raise RequestInvalidError([Problem("", "must change at least one field")])
    if body.url is not UNSET:
        _check_url(body.url)
    wanted = EndpointChange(
        url=None if body.url is UNSET else body.url,
        kinds=None if body.kinds is UNSET else tuple(body.kinds),
        description=None if body.description is UNSET else body.description,
        is_disabled=None if body.disabled is UNSET else body.disabled,
    )
    hooks = _hooks()
    changed = await hooks.store.change_endpoint(
        organization_id, endpoint_id, wanted, _asked_by(actor)
    )
    hooks.publisher.kick()
    return response(_shown(changed))


@webhook_endpoints.delete(f"{PREFIX}/<endpoint_id>")
async def remove(endpoint_id: str) -> Response:
    """Remove an endpoint with its deliveries."""
    organization_id, actor = await member(MANAGE)
    query()
    asked = _asked_by(actor)
    if not await _hooks().store.remove_endpoint(organization_id, endpoint_id, asked):
        raise ProblemError("endpoint_unknown")
    return response(Reply(204))


@webhook_endpoints.post(f"{PREFIX}/<endpoint_id>/test")
async def test(endpoint_id: str) -> Response:
    """Send a `webhook.test` to this endpoint."""
    organization_id, _ = await member(MANAGE)
    query()
    bundle, hooks = services(), _hooks()
    endpoint = await _mine(organization_id, endpoint_id)
    notification_id, now_ms = bundle.ids.new("evt"), bundle.clock.now_ms()
    made = await hooks.store.add_test(endpoint, notification_id, at_ms=now_ms)
    hooks.publisher.kick()
    return response(json_reply(202, delivery_object(made)))


@webhook_endpoints.get(f"{PREFIX}/<endpoint_id>/deliveries")
async def show_deliveries(endpoint_id: str) -> Response:
    """List what was sent to an endpoint, newest first."""
    organization_id, _ = await member(MANAGE)
    parameters = query("state", "limit", "cursor")
    state = choice_in(parameters, "state", (PENDING, DELIVERED, FAILED))
    limit = limit_in(parameters)
    after = cursor_in(parameters, (int, str))
    await _mine(organization_id, endpoint_id)
    found = await _hooks().store.deliveries(
        endpoint_id,
        state=state,
        after=None if after is None else (after[0], after[1]),
        limit=limit + 1,
    )
    page, rest = found[:limit], found[limit:]
    cursor = make_cursor(page[-1].created_at_ms, page[-1].id) if rest else None
    content = Page(data=[delivery_object(each) for each in page], next_cursor=cursor)
    return response(json_reply(200, content))


@webhook_endpoints.post(f"{PREFIX}/<endpoint_id>/deliveries/<delivery_id>/resend")
async def resend(endpoint_id: str, delivery_id: str) -> Response:
    """Send a delivery again, under the same id."""
    organization_id, _ = await member(MANAGE)
    query()
    await _mine(organization_id, endpoint_id)
    hooks, now_ms = _hooks(), services().clock.now_ms()
    again = await hooks.store.resend(endpoint_id, delivery_id, at_ms=now_ms)
    if again is None:
        raise ProblemError("delivery_unknown")
    hooks.publisher.kick()
    return response(json_reply(202, delivery_object(again)))
