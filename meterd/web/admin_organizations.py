"""Organizations, their keys and their adjustments, for operators (`/admin/v1`).

Rule 1: every write names the operator's key and a reason, which land in the audit log.
Rule 2: a change goes through the organization's actor, is committed, and then answered.
"""

from __future__ import annotations

from typing import Final

from msgspec import UNSET, UnsetType
from quart import Blueprint, Response

from meterd.core.commands import (
    Adjust,
    Adjusted,
    Audited,
    ChangeOrganization,
    CreditExceedsUsage,
    Done,
    ExceedsHardLimit,
    ExceedsOverageCap,
    PeriodUnknown,
    PlanManagedByStripe,
)
from meterd.core.organization import Hold, Profile
from meterd.core.period import calendar_period
from meterd.core.plan import UNSET as UNCHANGED, Terms, resolve
from meterd.errors import OrganizationUnknownError, Problem, RequestInvalidError
from meterd.ports.directory import NewOrganization
from meterd.web.customer_shapes import new_key
from meterd.web.idempotency import effect_id, is_retry
from meterd.web.keys import keys_page
from meterd.web.operator_shapes import LiveOrganization, live_organization, organization_object
from meterd.web.problems import ProblemError
from meterd.web.reply import Reply, json_reply
from meterd.web.requests import (
    body_as,
    cursor_in,
    limit_in,
    make_cursor,
    operator,
    query,
    response,
    services,
)
from meterd.web.schema import (
    AdjustmentBody,
    NewKeyBody,
    NewOrganizationBody,
    OrganizationPatch,
    contract_of,
    is_organization_id,
    tier_of,
)
from meterd.web.services import WebServices
from meterd.web.shapes import Page, row_object


CREATED: Final = "created"
CHANGED: Final = "changed by an operator"
"""Reasons in the audit log when the operator gives none."""

admin_organizations = Blueprint("admin_organizations", __name__, url_prefix="/admin/v1")


def new_organization(bundle: WebServices, body: NewOrganizationBody, actor: str) -> NewOrganization:
    """Return what is written for a new organization: first terms, first calendar period."""
    now_ms = bundle.clock.now_ms()
    plan, contract = tier_of(body.plan), contract_of(body.contract)
    reason = CREATED if body.reason is UNSET else body.reason
    return NewOrganization(
        organization_id=body.id,
        profile=Profile(
            name=body.name, stripe_customer_id=body.stripe_customer_id, created_at_ms=now_ms
        ),
        terms=Terms(
            seq=1,
            effective_at_ms=now_ms,
            plan=plan,
            contract=contract,
            trialing=False,
            limits=resolve(bundle.organizations.rules.catalogue, plan, contract),
            reason=reason,
        ),
        period=calendar_period(now_ms, terms_seq=1),
        created_by=actor,
        reason=reason,
    )


def change_command(body: OrganizationPatch, actor: str) -> ChangeOrganization:
    """Return the command that a patch asks for.

    Errors: RequestInvalidError when it asks for nothing, or suspends without a reason.
    """
    given = [name for name in body.__struct_fields__ if getattr(body, name) is not UNSET]
    problems = []
    if not set(given) - {"reason"}:
        problems.append(Problem("", "must change at least one field"))
    if "suspended" in given and "reason" not in given:
        problems.append(Problem("/reason", "is required with suspended"))
    if problems:
        raise RequestInvalidError(problems)
    audited = Audited(actor=actor, reason=CHANGED if body.reason is UNSET else body.reason)
    customer_id = body.stripe_customer_id
    return ChangeOrganization(
        audited=audited,
        name=None if body.name is UNSET else body.name,
        plan=None if body.plan is UNSET else tier_of(body.plan),
        contract=None if body.contract is UNSET else contract_of(body.contract),
        stripe_customer_id=UNCHANGED if customer_id is UNSET else customer_id,
        place=Hold.OPERATOR if body.suspended is True else None,
        lift=Hold.OPERATOR if body.suspended is False else None,
    )


async def described(bundle: WebServices, organization_id: str) -> LiveOrganization:
    """Return an organization with its quota, as its actor knows it; errors as `ask`."""
    snapshot = await bundle.organizations.snapshot(organization_id)
    return live_organization(organization_id, snapshot)


async def change_reply(
    bundle: WebServices, organization_id: str, body: OrganizationPatch, actor: str
) -> Reply:
    """Change an organization.

    Errors: RequestInvalidError, CustomerTakenError, ProblemError (409 plan_managed_by_stripe); as
    `ask`.
    """
    command = change_command(body, actor)
    organizations = bundle.organizations
    await organizations.view(organization_id)  # unknown: before anything is claimed for it
    if body.stripe_customer_id is not UNSET:
        await bundle.directory.claim_customer(organization_id, body.stripe_customer_id)
    answer = await organizations.ask(organization_id, command)
    if isinstance(answer.outcome, PlanManagedByStripe):
        raise ProblemError("plan_managed_by_stripe")
    assert isinstance(answer.outcome, Done), answer
    await organizations.durable(organization_id, answer.seq)
    await tell_stripe(bundle, body.stripe_customer_id)
    return json_reply(200, await described(bundle, organization_id))


async def tell_stripe(bundle: WebServices, customer_id: UnsetType | str | None) -> None:
    """Let the Stripe actor look again at what had come for a customer that is linked now."""
    actor = bundle.stripe_actor
    if actor is not None and isinstance(customer_id, str):
        await actor.customer_linked(customer_id)


async def adjust_reply(
    bundle: WebServices, organization_id: str, body: AdjustmentBody, actor: str
) -> Reply:
    """Book an adjustment. Errors: ProblemError, RequestInvalidError; as `ask` and `durable`."""
    entry_id = effect_id(bundle.ids, "aud")
    if is_retry():
        snapshot = await bundle.organizations.snapshot(organization_id)
        await bundle.organizations.durable(organization_id, snapshot.seq)
        booked = await bundle.directory.adjustment(organization_id, entry_id)
        if booked is not None:
            return json_reply(201, Page(data=[row_object(row) for row in booked]))
    audited = Audited(actor=actor, reason=body.reason, entry_id=entry_id)
    command = Adjust(audited=audited, agent_ms=body.agent_ms, label=body.period)
    answer = await bundle.organizations.ask(organization_id, command)
    match answer.outcome:
        case Adjusted(rows=rows):
            await bundle.organizations.durable(organization_id, answer.seq)
            content = Page(data=[row_object(row) for row in rows])
            return json_reply(201, content)
        case CreditExceedsUsage():
            raise ProblemError("credit_exceeds_usage")
        case ExceedsHardLimit():
            raise ProblemError("exceeds_hard_limit")
        case ExceedsOverageCap():
            raise ProblemError("exceeds_overage_cap")
        case PeriodUnknown():
            problem = Problem("/period", "must be a billing period of this organization")
            raise RequestInvalidError([problem])
        case outcome:
            raise AssertionError(outcome)


def _known_form(organization_id: str) -> str:
    """Return an id that can be one; what cannot is unknown. Errors: OrganizationUnknownError."""
    if not is_organization_id(organization_id):
        raise OrganizationUnknownError("not an id")
    return organization_id


@admin_organizations.post("/organizations")
async def create() -> Response:
    """Create an organization on a plan, its first period the current calendar month."""
    actor = await operator()
    query()
    body = await body_as(NewOrganizationBody)
    bundle = services()
    new = new_organization(bundle, body, actor)
    is_created = await bundle.directory.create_organization(new)
    if not is_created and not is_retry():  # a retry may find what it made
        raise ProblemError("organization_exists")
    await tell_stripe(bundle, body.stripe_customer_id)
    content = await described(bundle, body.id)
    location = f"/admin/v1/organizations/{body.id}"
    return response(json_reply(201, content, (("location", location),)))


@admin_organizations.get("/organizations")
async def show_all() -> Response:
    """List organizations by id, as stored."""
    await operator()
    parameters = query("limit", "cursor")
    limit = limit_in(parameters)
    after = cursor_in(parameters, (str,))
    found = await services().directory.organizations(
        after=None if after is None else after[0], limit=limit + 1
    )
    page, rest = found[:limit], found[limit:]
    data = [organization_object(one.organization_id, one.profile, one.terms) for one in page]
    cursor = make_cursor(page[-1].organization_id) if rest else None
    return response(json_reply(200, Page(data=data, next_cursor=cursor)))


@admin_organizations.get("/organizations/<organization_id>")
async def show(organization_id: str) -> Response:
    """Return one organization with its quota, as its actor knows it."""
    await operator()
    query()
    content = await described(services(), _known_form(organization_id))
    return response(json_reply(200, content))


@admin_organizations.patch("/organizations/<organization_id>")
async def change(organization_id: str) -> Response:
    """Change name, plan, contract, customer or suspension; takes effect at once."""
    actor = await operator()
    query()
    body = await body_as(OrganizationPatch)
    return response(await change_reply(services(), _known_form(organization_id), body, actor))


@admin_organizations.post("/organizations/<organization_id>/adjustments")
async def adjust(organization_id: str) -> Response:
    """Add or credit agent time, with a reason; returns the ledger rows."""
    actor = await operator()
    query()
    body = await body_as(AdjustmentBody)
    return response(await adjust_reply(services(), _known_form(organization_id), body, actor))


@admin_organizations.post("/organizations/<organization_id>/keys")
async def create_key(organization_id: str) -> Response:
    """Create a key; its text is in this answer and nowhere else, ever."""
    actor = await operator()
    query()
    body = await body_as(NewKeyBody)
    key_id, keyring = effect_id(services().ids, "key"), services().keyring
    if is_retry():  # the key it may have made was seen by nobody: it is replaced
        await keyring.revoke(_known_form(organization_id), key_id, revoked_by=actor)
        key_id = services().ids.new("key")
    key, text = await keyring.create(
        _known_form(organization_id),
        scopes=body.scopes,
        name=body.name,
        created_by=actor,
        key_id=key_id,
    )
    return response(json_reply(201, new_key(key, text)))


@admin_organizations.get("/organizations/<organization_id>/keys")
async def show_keys(organization_id: str) -> Response:
    """List an organization's keys, newest first, revoked ones too; never the key itself."""
    await operator()
    await services().organizations.view(_known_form(organization_id))
    return response(json_reply(200, await keys_page(organization_id)))


@admin_organizations.delete("/organizations/<organization_id>/keys/<key_id>")
async def revoke_key(organization_id: str, key_id: str) -> Response:
    """Revoke a key at once; its streams close. Repeats change nothing."""
    actor = await operator()
    query()
    if not key_id.isprintable():
        raise ProblemError("key_unknown")
    known_id = _known_form(organization_id)
    if await services().keyring.revoke(known_id, key_id, revoked_by=actor) is None:
        raise ProblemError("key_unknown")
    return response(Reply(204))
