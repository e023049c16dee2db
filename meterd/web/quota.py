"""`GET /v1/quota/check` and `GET /v1/quota`: may work start, and how much is used.

`check_reply` is the whole answer of the check; the hot path and the route both return it.
"""

from __future__ import annotations

from quart import Blueprint, Response

from meterd.core.quota import QuotaView
from meterd.web.problems import denial_reply
from meterd.web.reply import Reply, json_reply, rate_limit_headers
from meterd.web.requests import name_in, organization, query, request_id, response, services
from meterd.web.services import WebServices
from meterd.web.shapes import quota_object


CHECK_SCOPES = ("agent", "read")

quota = Blueprint("quota", __name__)


def check_reply(bundle: WebServices, view: QuotaView, request: str) -> Reply:
    """Return 200 with the quota object, or the refusal, for the agent the view was judged for."""
    if view.denial is not None:
        return denial_reply(view.denial, view, request, upgrade_url=bundle.config.upgrade_url)
    return json_reply(200, quota_object(view), rate_limit_headers(view))


async def quota_view(
    bundle: WebServices, organization_id: str, agent_id: str | None = None
) -> QuotaView:
    """Return the quota now, from memory when the organization is there.

    Errors: as `Organizations.ask`.
    """
    seen = bundle.organizations.view_nowait(organization_id, agent_id)
    return await bundle.organizations.view(organization_id, agent_id) if seen is None else seen


@quota.get("/v1/quota/check")
async def check() -> Response:
    """May this agent, or a new one, start a task now? No side effect."""
    organization_id = await organization(*CHECK_SCOPES)
    agent_id = name_in(query("agent_id"), "agent_id")
    view = await quota_view(services(), organization_id, agent_id)
    return response(check_reply(services(), view, request_id()))


@quota.get("/v1/quota")
async def show() -> Response:
    """Return the quota object, whatever it says."""
    organization_id = await organization(*CHECK_SCOPES)
    query()
    view = await quota_view(services(), organization_id)
    return response(json_reply(200, quota_object(view), rate_limit_headers(view)))
