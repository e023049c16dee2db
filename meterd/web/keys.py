"""`/v1/keys`: a customer's administrator makes, lists and revokes the organization's own keys."""

from __future__ import annotations

from typing import Final

from quart import Blueprint, Response

from meterd.web.customer_shapes import key_object, new_key
from meterd.web.idempotency import effect_id, is_retry
from meterd.web.problems import ProblemError
from meterd.web.reply import Reply, json_reply
from meterd.web.requests import (
    body_as,
    cursor_in,
    limit_in,
    make_cursor,
    member,
    query,
    response,
    services,
)
from meterd.web.schema import NewKeyBody
from meterd.web.shapes import Page


MANAGE: Final = "manage"

KEYS_MAX: Final = 1_000
"""Keys of one organization that are not revoked; only operators may give it more."""

keys = Blueprint("keys", __name__)


@keys.get("/v1/keys")
async def show_all() -> Response:
    """List the organization's keys, newest first, revoked ones too."""
    organization_id, _ = await member(MANAGE)
    return response(json_reply(200, await keys_page(organization_id)))


async def keys_page(organization_id: str) -> Page:
    """Return the page of an organization's keys that the request asks for."""
    parameters = query("limit", "cursor")
    limit, after = limit_in(parameters), cursor_in(parameters, (int, str))
    found = await services().keyring.keys_of(
        organization_id, after=None if after is None else (after[0], after[1]), limit=limit + 1
    )
    last = found[limit - 1] if len(found) > limit else None
    cursor = None if last is None else make_cursor(last.created_at_ms, last.id)
    return Page(data=[key_object(key) for key in found[:limit]], next_cursor=cursor)


@keys.post("/v1/keys")
async def create() -> Response:
    """Create a key of the organization; its text is in this answer and nowhere else, ever."""
    organization_id, actor = await member(MANAGE)
    query()
    body = await body_as(NewKeyBody)
    if await services().keyring.valid_keys(organization_id) >= KEYS_MAX:
        raise ProblemError("too_many_keys")
    key_id, keyring = effect_id(services().ids, "key"), services().keyring
    if is_retry():  # the key it may have made was seen by nobody: it is replaced
        await keyring.revoke(organization_id, key_id, revoked_by=actor)
        key_id = services().ids.new("key")
    key, text = await keyring.create(
        organization_id, scopes=body.scopes, name=body.name, created_by=actor, key_id=key_id
    )
    return response(json_reply(201, new_key(key, text)))


@keys.delete("/v1/keys/<key_id>")
async def revoke(key_id: str) -> Response:
    """Revoke a key at once; its streams close. Repeats change nothing."""
    organization_id, actor = await member(MANAGE)
    query()
    if not key_id.isprintable():
        raise ProblemError("key_unknown")
    if await services().keyring.revoke(organization_id, key_id, revoked_by=actor) is None:
        raise ProblemError("key_unknown")
    return response(Reply(204))
