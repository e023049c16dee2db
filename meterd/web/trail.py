"""Writing and reading the audit log, and what went wrong, for operators.

Rule 1: what changes no fact (hands on actors, exports, retries) is noted before it is done, so
nothing an operator did is missing; while the store is away such a thing is refused with 503.
Rule 2: texts that came out of a crash are masked: an error message may quote what it choked on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from quart import Blueprint, Response

from meterd.ports.trail import AuditRecord, Trail
from meterd.web.operator_shapes import audit_object, crash_object, dead_letter_object
from meterd.web.problems import ProblemError
from meterd.web.reply import json_reply
from meterd.web.requests import (
    cursor_in,
    limit_in,
    make_cursor,
    name_in,
    operator,
    query,
    response,
    services,
)
from meterd.web.services import WebServices
from meterd.web.shapes import Page


BY_OPERATOR: Final = "by an operator"
"""Reason in the audit log when the operator gives none."""

trail = Blueprint("trail", __name__, url_prefix="/admin/v1")


def trail_of(bundle: WebServices) -> Trail:
    """Return the trail. Errors: ProblemError not_found when this process keeps none."""
    if bundle.trail is None:
        raise ProblemError("not_found")
    return bundle.trail


async def note(
    bundle: WebServices,
    *,
    actor: str,
    action: str,
    reason: str = BY_OPERATOR,
    organization_id: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write into the audit log what is about to be done. Errors: StoreUnavailableError."""
    await trail_of(bundle).note(
        AuditRecord(
            id=bundle.ids.new("aud"),
            at_ms=bundle.clock.now_ms(),
            actor=actor,
            action=action,
            organization_id=organization_id,
            reason=reason,
            before_json=json.dumps(before or {}, sort_keys=True),
            after_json=json.dumps(after or {}, sort_keys=True),
        )
    )


@trail.get("/audit")
async def show_audit() -> Response:
    """List who changed what and why, newest first, `?organization_id=&action=`."""
    await operator()
    parameters = query("organization_id", "action", "limit", "cursor")
    limit, position = limit_in(parameters), cursor_in(parameters, (int, str))
    found = await trail_of(services()).audit(
        organization_id=name_in(parameters, "organization_id"),
        action=name_in(parameters, "action"),
        after=None if position is None else (position[0], position[1]),
        limit=limit + 1,
    )
    last = found[limit - 1] if len(found) > limit else None
    cursor = None if last is None else make_cursor(last.at_ms, last.id)
    data = [audit_object(record) for record in found[:limit]]
    return response(json_reply(200, Page(data=data, next_cursor=cursor)))


@trail.get("/dead-letters")
async def show_dead_letters() -> Response:
    """List messages and facts that were set aside, newest first, `?address=`."""
    await operator()
    parameters = query("address", "limit", "cursor")
    limit, position = limit_in(parameters), cursor_in(parameters, (int, str))
    found = await trail_of(services()).dead_letters(
        address=name_in(parameters, "address"),
        after=None if position is None else (position[0], position[1]),
        limit=limit + 1,
    )
    last = found[limit - 1] if len(found) > limit else None
    cursor = None if last is None else make_cursor(last.at_ms, last.id)
    data = [dead_letter_object(letter) for letter in found[:limit]]
    return response(json_reply(200, Page(data=data, next_cursor=cursor)))


@trail.get("/crashes")
async def show_crashes() -> Response:
    """List the latest crashes of all actors, newest first, from memory: needs no database."""
    await operator()
    limit = limit_in(query("limit"))
    data = [crash_object(crash) for crash in services().inspector.crashes(limit)]
    return response(json_reply(200, Page(data=data)))
