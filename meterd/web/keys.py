"""`/v1/keys`: a customer's administrator makes, lists and revokes the organization's own keys."""

from __future__ import annotations

from typing import Final

from quart import Blueprint, Response

from meterd.web.customer_shapes import key_object, new_key
from meterd.web.idempotency import effect_id, is_retry
from meterd.web.problems import ProblemError
from meterd.web.reply import Reply, json_reply
from meterd.web.requests import body_as, member, page_of, query, response, services
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
    parameters = query("limit", "cursor")
    found = await services().keyring.keys_of(organization_id)
    page, cursor = page_of(
        found, parameters, place=lambda key: (key.created_at_ms, key.id), newest_first=True
    )
    content = Page(data=[key_object(key) for key in page], next_cursor=cursor)
    return response(json_reply(200, content))


@keys.post("/v1/keys")
async def create() -> Response:
    """Create a key of the organization; its text is in this answer and nowhere else, ever."""
    organization_id, actor = await member(MANAGE)
    query()
    body = await body_as(NewKeyBody)
    known = await services().keyring.keys_of(organization_id)
    if sum(key.revoked_at_ms is None for key in known) >= KEYS_MAX:
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
