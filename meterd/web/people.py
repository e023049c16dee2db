"""`/admin/v1/users`: what is held about a person, and erasing it (contract §11). Scope `admin`.

Rule 1: sums never change: a person becomes a pseudonym, nothing is removed.
Rule 2: the audit log tells that somebody was erased and by whom, not who it was.
What a person made (keys, endpoints) goes on under the pseudonym; the audit log keeps its entries.
Rule 3: a person whose tasks run cannot be erased: what they run would be written down again.
"""

from __future__ import annotations

from quart import Blueprint, Response

from meterd.errors import OrganizationUnknownError
from meterd.ports.people import People
from meterd.web.operator_shapes import Erased
from meterd.web.problems import ProblemError
from meterd.web.reply import json_reply
from meterd.web.requests import name_in, operator, query, response, services
from meterd.web.schema import is_organization_id
from meterd.web.services import WebServices
from meterd.web.trail import BY_OPERATOR, note


people = Blueprint("people", __name__, url_prefix="/admin/v1")


@people.get("/users/<organization_id>/<path:user_id>")
async def export(organization_id: str, user_id: str) -> Response:
    """Return everything stored under a person's id, as the store has it."""
    actor = await operator()
    reason = _reason()
    bundle = services()
    store = await _known(bundle, organization_id)
    found = await store.held(organization_id, user_id)
    await note(
        bundle,
        actor=actor,
        action="user.export",
        organization_id=organization_id,
        reason=reason,
    )
    return response(json_reply(200, {"user_id": user_id, **found}))


@people.delete("/users/<organization_id>/<path:user_id>")
async def erase(organization_id: str, user_id: str) -> Response:
    """Put a pseudonym in a person's place, everywhere; sums stay what they were."""
    actor = await operator()
    reason = _reason()
    bundle = services()
    store = await _known(bundle, organization_id)
    organizations = bundle.organizations
    cell = organizations.cells.get(organization_id)
    state = None if cell is None else cell.state
    if state is not None and any(task.info.user_id == user_id for task in state.running.values()):
        raise ProblemError("user_active")
    await organizations.durable(organization_id, organizations.ledger.last_seq(organization_id))
    pseudonym = bundle.ids.new("erased")
    await note(
        bundle,
        actor=actor,
        action="user.erase",
        organization_id=organization_id,
        reason=reason,
        after={"user_id": pseudonym},
    )
    records, tasks = await store.erase(organization_id, user_id, pseudonym)
    organizations.cells.restart(organization_id)  # what is in memory still has the name
    return response(json_reply(200, Erased(pseudonym=pseudonym, records=records, tasks=tasks)))


def _reason() -> str:
    """Return why, from the query: a DELETE has no body everywhere."""
    return name_in(query("reason"), "reason") or BY_OPERATOR


async def _known(bundle: WebServices, organization_id: str) -> People:
    """Return the store of people's data, the organization being known and in memory."""
    if bundle.people is None:
        raise ProblemError("not_found")
    if not is_organization_id(organization_id):
        raise OrganizationUnknownError("not an id")
    await bundle.organizations.view(organization_id)
    return bundle.people
