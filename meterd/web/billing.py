"""Stripe's pages for an organization, and charges and reconciliation for operators.

Rule 1: without a Stripe key these routes answer `billing_off`; charges can be listed all the same.
Rule 2: a charge goes to Stripe or is written off by name of an operator, with a reason.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

from msgspec import UNSET, Meta, UnsetType
from quart import Blueprint, Response, request

from meterd.actors.billing_desk import AlreadySubscribed, BillingDesk, NotForSale
from meterd.actors.charges import MoveRefused
from meterd.core.overage import Charge, ChargeState
from meterd.core.plan import Tier
from meterd.errors import OrganizationUnknownError
from meterd.web.auth import authenticated, organization_of
from meterd.web.book_shapes import charge_object, stripe_reconciled
from meterd.web.customer_shapes import Address
from meterd.web.problems import ProblemError
from meterd.web.reply import Reply, json_reply
from meterd.web.requests import (
    body_as,
    choice_in,
    cursor_in,
    limit_in,
    make_cursor,
    name_in,
    operator,
    query,
    response,
    services,
)
from meterd.web.schema import Reason, Request, is_organization_id
from meterd.web.services import BillingServices
from meterd.web.shapes import Page
from meterd.web.trail import note


RETURN_URL_CHARACTERS_MAX: Final = 2_048

ReturnUrl = Annotated[
    str,
    Meta(
        max_length=RETURN_URL_CHARACTERS_MAX,
        pattern=r"^https?://[!-~]+$",
        description="Where the page leads back to; the configured address unless given.",
        extra={"must": "must be an absolute http or https URL"},
    ),
]


class CheckoutBody(Request, frozen=True):
    """Subscribe to a plan."""

    plan: (
        Annotated[
            Literal["starter", "pro", "enterprise"],
            Meta(
                description="The plan to subscribe to; the next one up unless given.",
                extra={"must": "must be one of starter, pro, enterprise"},
            ),
        ]
        | UnsetType
    ) = UNSET
    return_url: ReturnUrl | UnsetType = UNSET


class PortalBody(Request, frozen=True):
    """Open the billing portal."""

    return_url: ReturnUrl | UnsetType = UNSET


class OrderBody(Request, frozen=True):
    """Release or write off a charge."""

    reason: Reason | UnsetType = UNSET


T = TypeVar("T", bound=Request)

billing = Blueprint("billing", __name__, url_prefix="/v1/billing")
admin_billing = Blueprint("admin_billing", __name__, url_prefix="/admin/v1")


# --- hosted pages ---------------------------------------------------------------------------------


@billing.post("/checkout")
async def open_checkout() -> Response:
    """Return the page on which the organization subscribes. Scope `manage`."""
    organization_id, actor = await _manager()
    query()
    return response(await _checkout(organization_id, actor))


@billing.post("/portal")
async def open_portal() -> Response:
    """Return the page on which the organization changes its plan and how it pays."""
    organization_id, actor = await _manager()
    query()
    return response(await _portal(organization_id, actor))


@admin_billing.post("/organizations/<organization_id>/billing/checkout")
async def open_checkout_for(organization_id: str) -> Response:
    """Return the page on which an organization subscribes."""
    actor = await operator()
    query()
    return response(await _checkout(_known_form(organization_id), actor))


@admin_billing.post("/organizations/<organization_id>/billing/portal")
async def open_portal_for(organization_id: str) -> Response:
    """Return the page on which an organization changes its plan and how it pays."""
    actor = await operator()
    query()
    return response(await _portal(_known_form(organization_id), actor))


async def _manager() -> tuple[str, str]:
    """Return the organization of a key with scope `manage`, and the key's id."""
    principal = await authenticated(services().keyring, request.headers.getlist("authorization"))
    return organization_of(principal, "manage"), principal.key_id


async def _checkout(organization_id: str, actor: str) -> Reply:
    body = await _body_or(CheckoutBody())
    found = await _desk().checkout_url(
        organization_id,
        None if body.plan is UNSET else Tier(body.plan),
        return_url=_return_url(body.return_url),
        actor=actor,
    )
    match found:
        case AlreadySubscribed():
            raise ProblemError("already_subscribed")
        case NotForSale():
            raise ProblemError("plan_not_for_sale")
        case url:
            return json_reply(201, Address(url=url))


async def _portal(organization_id: str, actor: str) -> Reply:
    body = await _body_or(PortalBody())
    url = await _desk().portal_url(
        organization_id, return_url=_return_url(body.return_url), actor=actor
    )
    return json_reply(201, Address(url=url))


def _desk() -> BillingDesk:
    desk = _billing().desk
    if desk is None:
        raise ProblemError("billing_off")
    return desk


def _billing() -> BillingServices:
    found = services().billing
    if found is None:
        raise ProblemError("billing_off")
    return found


async def _body_or(default: T) -> T:
    """Return the body, or the default when there is none at all."""
    raw = await request.get_data(cache=True, as_text=False, parse_form_data=False)
    return default if not raw else await body_as(type(default))


def _return_url(given: str | UnsetType) -> str:
    config = services().config
    if given is not UNSET:
        return given
    return config.billing_return_url or config.upgrade_url or request.host_url


def _known_form(organization_id: str) -> str:
    if not is_organization_id(organization_id):
        raise OrganizationUnknownError("not an id")
    return organization_id


# --- charges --------------------------------------------------------------------------------------


@admin_billing.get("/charges")
async def show_charges() -> Response:
    """List charges, newest first, `?state=` and `?organization_id=`."""
    await operator()
    parameters = query("state", "organization_id", "limit", "cursor")
    limit = limit_in(parameters)
    state = choice_in(parameters, "state", tuple(each.value for each in ChargeState))
    position = cursor_in(parameters, (int, str))
    found = await _billing().store.charges(
        state=None if state is None else ChargeState(state),
        organization_id=name_in(parameters, "organization_id"),
        after=None if position is None else (position[0], position[1]),
        limit=limit + 1,
    )
    page, rest = found[:limit], found[limit:]
    cursor = make_cursor(page[-1].created_at_ms, page[-1].id) if rest else None
    return response(
        json_reply(200, Page(data=[charge_object(each) for each in page], next_cursor=cursor))
    )


@admin_billing.post("/charges/<charge_id>/release")
async def release_charge(charge_id: str) -> Response:
    """Let a held charge go to Stripe."""
    actor = await operator()
    query()
    body = await _body_or(OrderBody())
    reason = "released" if body.reason is UNSET else body.reason
    found = await _billing().charges.release(charge_id, actor=actor, reason=reason)
    return response(_ordered(found))


@admin_billing.post("/charges/<charge_id>/void")
async def void_charge(charge_id: str) -> Response:
    """Write a charge off: it is never made."""
    actor = await operator()
    query()
    body = await _body_or(OrderBody())
    reason = "written off" if body.reason is UNSET else body.reason
    found = await _billing().charges.write_off(charge_id, actor=actor, reason=reason)
    return response(_ordered(found))


def _ordered(found: Charge | MoveRefused | None) -> Reply:
    match found:
        case None:
            raise ProblemError("charge_unknown")
        case MoveRefused():
            raise ProblemError("charge_not_held")
        case charge:
            return json_reply(200, charge_object(charge))


# --- reconciliation -------------------------------------------------------------------------------


@admin_billing.post("/reconcile/stripe")
async def reconcile_stripe() -> Response:
    """Compare with Stripe and repair what differs; `?dry_run=true` only tells."""
    actor = await operator()
    is_dry = choice_in(query("dry_run"), "dry_run", ("true", "false")) == "true"
    reconciliation = _billing().reconciliation
    if reconciliation is None:
        raise ProblemError("billing_off")
    if not is_dry and services().trail is not None:
        await note(services(), actor=actor, action="reconcile.stripe")
    return response(json_reply(200, stripe_reconciled(await reconciliation.run(is_dry=is_dry))))
