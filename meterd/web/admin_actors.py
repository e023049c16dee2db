"""What actors do right now, and operators' hands on them; works on stuck and quarantined ones.

Rule 1: looking sends no message, so it works whatever state an actor is in.
Rule 2: every hand on an actor is in the audit log before it is laid on (`note`).
Rule 3: a trace is read from a bounded ring at a bounded rate: watching cannot slow the watched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import trio
from msgspec import UNSET, UnsetType
from quart import Blueprint, Response, g, websocket

from meterd.actors.inspection import SORTS, ActorView
from meterd.actors.trace import Trace
from meterd.errors import MeterdError
from meterd.web.auth import authenticated, operator_of
from meterd.web.operator_shapes import (
    actor_object,
    handled_actor,
    live_trace_message,
    trace_message,
)
from meterd.web.problems import ProblemError
from meterd.web.reply import json_reply, new_request_id
from meterd.web.requests import (
    body_or_default,
    choice_in,
    limit_in,
    operator,
    query,
    response,
    services,
)
from meterd.web.schema import ActorBody, TraceBody
from meterd.web.services import WebServices
from meterd.web.shapes import Page
from meterd.web.stream_transport import CLOSE_UNAUTHORIZED, CLOSE_WRONG_SCOPE
from meterd.web.trail import BY_OPERATOR, note


KINDS: Final = ("organization", "service")

LOOK_S: Final = 0.25
"""Seconds between two looks of a live trace."""

MESSAGES_PER_LOOK: Final = 25
"""Entries sent at each look, 100 a second: more than that nobody reads."""

STILL_S: Final = 5.0
"""Seconds of silence after which a live trace says that it is still there."""

CLOSE_GONE: Final = 4404
"""The actor is not in memory, or left it."""

admin_actors = Blueprint("admin_actors", __name__, url_prefix="/admin/v1")


@admin_actors.get("/actors")
async def show_all() -> Response:
    """List actors in memory, in the order asked for."""
    await operator()
    parameters = query("kind", "sort", "limit")
    kind = choice_in(parameters, "kind", KINDS)
    sort = choice_in(parameters, "sort", SORTS) or "address"
    limit = limit_in(parameters)
    inspector = services().inspector
    if sort == "rate":
        await inspector.sample()
    found = inspector.actors(kind=kind, sort=sort, limit=limit)
    return response(json_reply(200, Page(data=[actor_object(actor) for actor in found])))


@admin_actors.get("/actors/<path:address>")
async def show(address: str) -> Response:
    """Return one actor."""
    await operator()
    query()
    return response(json_reply(200, actor_object(_known(services(), address))))


@admin_actors.get("/actors/<path:address>/trace")
async def show_trace(address: str) -> Response:
    """Return what the trace of an actor holds, oldest first; empty when it is off."""
    await operator()
    query()
    bundle = services()
    _known(bundle, address)
    trace = _trace_of(bundle, address)
    entries = [] if trace is None else trace.after(0)
    return response(json_reply(200, Page(data=[trace_message(entry) for entry in entries])))


@admin_actors.post("/actors/<path:address>/restart")
async def restart(address: str) -> Response:
    """Read an organization again from the store, or start a service actor again."""
    return await _hand(address, "restart", _restart)


@admin_actors.post("/actors/<path:address>/release")
async def release(address: str) -> Response:
    """Forgive a quarantined organization at once."""
    return await _hand(address, "release", _release)


@admin_actors.post("/actors/<path:address>/passivate")
async def passivate(address: str) -> Response:
    """Let an idle organization leave memory; 409 when it cannot."""
    return await _hand(address, "passivate", _passivate)


@admin_actors.post("/actors/<path:address>/trace")
async def trace(address: str) -> Response:
    """Write down an organization's messages from now on, or stop (`"on": false`)."""
    actor = await operator()
    query()
    body = await body_or_default(TraceBody)
    bundle = services()
    before = _known(bundle, address)
    organization_id = _organization_in(address)
    await note(
        bundle,
        actor=actor,
        action="actor.trace",
        organization_id=organization_id,
        reason=_reason(body.reason),
        before={"address": address, "traced": before.is_traced},
        after={"address": address, "traced": body.on},
    )
    bundle.organizations.cells.trace(organization_id, is_on=body.on)
    found = _trace_of(bundle, address)
    if found is not None:
        found.is_pinned = True
    return response(json_reply(200, actor_object(_known(bundle, address))))


async def _hand(address: str, verb: str, act: Callable[[WebServices, str], None]) -> Response:
    """Note what an operator is about to do to an actor, do it, and show the actor after it."""
    actor = await operator()
    query()
    body = await body_or_default(ActorBody)
    bundle = services()
    before = _known(bundle, address)
    await note(
        bundle,
        actor=actor,
        action=f"actor.{verb}",
        organization_id=address.partition("/")[2] if before.kind == "organization" else None,
        reason=_reason(body.reason),
        before={"address": address, "phase": before.phase, "strikes": before.strikes},
        after={"address": address, "asked": verb},
    )
    act(bundle, address)
    after = bundle.inspector.actor(address)
    return response(json_reply(200, handled_actor(after, before)))


def _restart(bundle: WebServices, address: str) -> None:
    kind, _, name = address.partition("/")
    if kind == "organization":
        bundle.organizations.cells.restart(name)
        return
    service = bundle.inspector.service(name)
    assert service is not None, address
    service.restart()


def _release(bundle: WebServices, address: str) -> None:
    bundle.organizations.cells.release(_organization_in(address))


def _passivate(bundle: WebServices, address: str) -> None:
    if not bundle.organizations.cells.passivate(_organization_in(address)):
        raise ProblemError("actor_busy")


def _known(bundle: WebServices, address: str) -> ActorView:
    found = bundle.inspector.actor(address)
    if found is None:
        raise ProblemError("actor_unknown")
    return found


def _organization_in(address: str) -> str:
    kind, _, name = address.partition("/")
    if kind != "organization":
        raise ProblemError("not_for_this_actor")
    return name


def _trace_of(bundle: WebServices, address: str) -> Trace | None:
    kind, _, name = address.partition("/")
    cell = bundle.organizations.cells.get(name) if kind == "organization" else None
    return None if cell is None else cell.trace


def _reason(given: str | UnsetType) -> str:
    return BY_OPERATOR if given is UNSET else given


# --- live -----------------------------------------------------------------------------------------


@admin_actors.before_websocket
async def name_websocket() -> None:
    """Give the upgrade request an id, as every request has."""
    g.request_id = new_request_id(services().ids)


@admin_actors.websocket("/actors/<path:address>/trace")
async def watch(address: str) -> None:
    """Show an organization's messages as they happen, at most 100 a second."""
    bundle = services()
    await websocket.accept()
    try:
        principal = await authenticated(bundle.keyring, websocket.headers.getlist("authorization"))
        actor = operator_of(principal)
        organization_id = _organization_in(address)
        _known(bundle, address)
        await note(
            bundle,
            actor=actor,
            action="actor.watch",
            organization_id=organization_id,
            after={"address": address},
        )
    except ProblemError as error:
        codes = {"unauthorized": CLOSE_UNAUTHORIZED, "wrong_scope": CLOSE_WRONG_SCOPE}
        await websocket.close(codes.get(error.code, CLOSE_GONE), error.code)
        return
    except MeterdError as error:
        await websocket.close(1013, type(error).__name__)
        return
    await _show_live(bundle, organization_id, principal.key_id)


async def _show_live(bundle: WebServices, organization_id: str, key_id: str) -> None:
    """Send what the trace gets until the actor leaves memory or the key is revoked."""
    seen = 0
    silent_s = 0.0
    traces: list[Trace] = []
    try:
        while not bundle.keyring.is_revoked(key_id):
            if not bundle.organizations.cells.trace(organization_id, is_on=True):
                await websocket.close(CLOSE_GONE, "not in memory")
                return
            found = _trace_of(bundle, f"organization/{organization_id}")
            assert found is not None, organization_id
            if not traces or traces[-1] is not found:
                traces.append(found)
                found.watchers += 1
                seen = 0
            entries = found.after(seen)
            silent_s = 0.0 if entries else silent_s + LOOK_S
            if entries:
                await _send(entries)
                seen = entries[-1].number
            elif silent_s >= STILL_S:
                silent_s = 0.0
                await websocket.send('{"type":"still"}')
            await trio.sleep(LOOK_S)
        await websocket.close(CLOSE_UNAUTHORIZED, "the key was revoked")
    finally:
        for each in traces:
            each.watchers -= 1
            current = _trace_of(bundle, f"organization/{organization_id}")
            if current is each and not each.watchers and not each.is_pinned:
                bundle.organizations.cells.trace(organization_id, is_on=False)


async def _send(entries: Any) -> None:
    """Send the newest entries of a look, and how many older ones were left out."""
    left_out = max(0, len(entries) - MESSAGES_PER_LOOK)
    if left_out:
        await websocket.send(msgspec.json.encode({"type": "skipped", "count": left_out}).decode())
    for entry in entries[left_out:]:
        await websocket.send(msgspec.json.encode(live_trace_message(entry)).decode())
