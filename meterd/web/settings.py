"""`/v1/settings`: what a customer's administrator decides about limits and alerts."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from msgspec import UNSET
from quart import Blueprint, Response

from meterd.core.commands import Audited, ChangeSettings
from meterd.core.money import CENT
from meterd.core.organization import Profile
from meterd.core.plan import UNSET as UNCHANGED, Limits
from meterd.errors import Problem, RequestInvalidError
from meterd.web.customer_schema import SettingsBody
from meterd.web.customer_shapes import SettingsObject
from meterd.web.reply import Reply, json_reply
from meterd.web.requests import body_as, member, query, response, services
from meterd.web.services import WebServices


REASON: Final = "changed by the customer"
"""In the audit log."""

settings = Blueprint("settings", __name__)


def settings_object(limits: Limits, profile: Profile) -> SettingsObject:
    """Return the settings as they are shown."""
    cap_usd = limits.overage_cap_usd
    return SettingsObject(
        overage_cap_usd=None if cap_usd is None else str(cap_usd.quantize(CENT)),
        thresholds=list(profile.threshold_percents),
    )


async def settings_reply(bundle: WebServices, organization_id: str) -> Reply:
    """Return the settings in force. Errors: as `Organizations.ask`."""
    snapshot = await bundle.organizations.snapshot(organization_id)
    return json_reply(200, settings_object(snapshot.terms.limits, snapshot.profile))


def settings_command(body: SettingsBody, actor: str) -> ChangeSettings:
    """Return the command that a body asks for. Errors: RequestInvalidError when it is empty."""
    cap, thresholds = body.overage_cap_usd, body.thresholds
    if cap is UNSET and thresholds is UNSET:
        raise RequestInvalidError([Problem("", "must change at least one field")])
    return ChangeSettings(
        audited=Audited(actor=actor, reason=REASON),
        overage_cap_usd=UNCHANGED if cap is UNSET else None if cap is None else Decimal(cap),
        threshold_percents=None if thresholds is UNSET else tuple(sorted(thresholds)),
    )


@settings.get("/v1/settings")
async def show() -> Response:
    """Return the organization's own settings."""
    organization_id, _ = await member("manage")
    query()
    return response(await settings_reply(services(), organization_id))


@settings.put("/v1/settings")
async def change() -> Response:
    """Change the organization's own settings; in force at once, on running tasks too."""
    organization_id, actor = await member("manage")
    query()
    command = settings_command(await body_as(SettingsBody), actor)
    bundle = services()
    answer = await bundle.organizations.ask(organization_id, command)
    await bundle.organizations.durable(organization_id, answer.seq)
    return response(await settings_reply(bundle, organization_id))
