"""What actors do right now, for operators; works on stuck and quarantined ones too."""

from __future__ import annotations

from typing import Any, Final

from quart import Blueprint, Response

from meterd.actors.inspection import SORTS, ActorView
from meterd.web.problems import ProblemError
from meterd.web.reply import json_reply
from meterd.web.requests import choice_in, limit_in, operator, query, response, services
from meterd.web.shapes import Page


KINDS: Final = ("organization", "service")

admin_actors = Blueprint("admin_actors", __name__, url_prefix="/admin/v1")


def actor_object(actor: ActorView) -> dict[str, Any]:
    """Return the shape of an actor (contract §11)."""
    return {
        "address": actor.address,
        "kind": actor.kind,
        "phase": actor.phase,
        "mailbox": {"depth": actor.mailbox_depth, "peak": actor.mailbox_peak},
        "processed": actor.processed,
        "strikes": actor.strikes,
        "restarts": actor.restarts,
        "last_error": actor.last_error,
        "idle_ms": actor.idle_ms,
        "unflushed": actor.unflushed,
        "state": actor.state,
    }


@admin_actors.get("/actors")
async def show_all() -> Response:
    """List actors in memory, in the order asked for."""
    await operator()
    parameters = query("kind", "sort", "limit")
    found = services().inspector.actors(
        kind=choice_in(parameters, "kind", KINDS),
        sort=choice_in(parameters, "sort", SORTS) or "address",
        limit=limit_in(parameters),
    )
    return response(json_reply(200, Page(data=[actor_object(actor) for actor in found])))


@admin_actors.get("/actors/<path:address>")
async def show(address: str) -> Response:
    """Return one actor."""
    await operator()
    query()
    actor = services().inspector.actor(address)
    if actor is None:
        raise ProblemError("actor_unknown")
    return response(json_reply(200, actor_object(actor)))
