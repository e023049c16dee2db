"""What operators may ask, with a key of scope `admin`: what is sent, what comes back.

As in `openapi_customer`.
"""

from __future__ import annotations

from typing import Final

from meterd.actors.inspection import SORTS
from meterd.core.overage import ChargeState
from meterd.reporting.figures import Report
from meterd.web.admin_actors import KINDS
from meterd.web.admin_books import MARKDOWN
from meterd.web.admin_stripe import STATES
from meterd.web.billing import CheckoutBody, OrderBody, PortalBody
from meterd.web.book_shapes import (
    BooksReconciled,
    ChargeObject,
    DayRevenue,
    FindingObject,
    InboxObject,
    JobObject,
    LiveRevenue,
    Retried,
    RunObject,
    StripeReconciled,
)
from meterd.web.customer_shapes import Address, KeyObject, NewKey
from meterd.web.openapi_route import (
    DATE,
    FLAG,
    LIMIT,
    NAME,
    PAGING,
    STRIPE_TROUBLE,
    PageOf,
    Route,
    json_body,
    one_of,
)
from meterd.web.operator_shapes import (
    ActorObject,
    AuditObject,
    CrashObject,
    DeadLetterObject,
    Erased,
    HandledActor,
    Held,
    LiveOrganization,
    OrganizationObject,
    TraceMessage,
)
from meterd.web.schema import (
    ActorBody,
    AdjustmentBody,
    NewKeyBody,
    NewOrganizationBody,
    OrganizationPatch,
    TraceBody,
)
from meterd.web.shapes import RowObject


ADMIN = ("admin",)

_ORGANIZATION: Final = "/admin/v1/organizations/<organization_id>"
_ACTOR: Final = "/admin/v1/actors/<path:address>"
_USER: Final = "/admin/v1/users/<organization_id>/<path:user_id>"

OPERATOR_ROUTES: Final = (
    # Organizations.
    Route(
        method="POST",
        path="/admin/v1/organizations",
        scopes=ADMIN,
        body=json_body(NewOrganizationBody),
        answers={201: LiveOrganization},
        problems=("organization_exists", "customer_taken"),
    ),
    Route(
        method="GET",
        path="/admin/v1/organizations",
        scopes=ADMIN,
        query=PAGING,
        answers={200: PageOf(OrganizationObject)},
    ),
    Route(
        method="GET",
        path=_ORGANIZATION,
        scopes=ADMIN,
        answers={200: LiveOrganization},
        problems=("organization_unknown",),
    ),
    Route(
        method="PATCH",
        path=_ORGANIZATION,
        scopes=ADMIN,
        body=json_body(OrganizationPatch),
        answers={200: LiveOrganization},
        problems=("organization_unknown", "customer_taken", "plan_managed_by_stripe"),
    ),
    Route(
        method="POST",
        path=f"{_ORGANIZATION}/adjustments",
        scopes=ADMIN,
        body=json_body(AdjustmentBody),
        answers={201: PageOf(RowObject)},
        problems=(
            "organization_unknown",
            "credit_exceeds_usage",
            "exceeds_hard_limit",
            "exceeds_overage_cap",
        ),
    ),
    Route(
        method="POST",
        path=f"{_ORGANIZATION}/keys",
        scopes=ADMIN,
        body=json_body(NewKeyBody),
        answers={201: NewKey},
        problems=("organization_unknown",),
    ),
    Route(
        method="GET",
        path=f"{_ORGANIZATION}/keys",
        scopes=ADMIN,
        query=PAGING,
        answers={200: PageOf(KeyObject)},
        problems=("organization_unknown",),
    ),
    Route(
        method="DELETE",
        path=f"{_ORGANIZATION}/keys/<key_id>",
        scopes=ADMIN,
        answers={204: None},
        problems=("organization_unknown", "key_unknown"),
    ),
    Route(
        method="POST",
        path=f"{_ORGANIZATION}/billing/checkout",
        scopes=ADMIN,
        body=json_body(CheckoutBody),
        is_body_required=False,
        answers={201: Address},
        problems=(
            "organization_unknown",
            *STRIPE_TROUBLE,
            "already_subscribed",
            "plan_not_for_sale",
        ),
    ),
    Route(
        method="POST",
        path=f"{_ORGANIZATION}/billing/portal",
        scopes=ADMIN,
        body=json_body(PortalBody),
        is_body_required=False,
        answers={201: Address},
        problems=("organization_unknown", *STRIPE_TROUBLE),
    ),
    # Actors.
    Route(
        method="GET",
        path="/admin/v1/actors",
        scopes=ADMIN,
        query={"kind": one_of(*KINDS), "sort": one_of(*SORTS), "limit": LIMIT},
        answers={200: PageOf(ActorObject)},
    ),
    Route(
        method="GET",
        path=_ACTOR,
        scopes=ADMIN,
        answers={200: ActorObject},
        problems=("actor_unknown",),
    ),
    *(
        Route(
            method="POST",
            path=f"{_ACTOR}/{verb}",
            scopes=ADMIN,
            body=json_body(ActorBody),
            is_body_required=False,
            answers={200: HandledActor},
            problems=("actor_unknown", "actor_busy", "not_for_this_actor"),
        )
        for verb in ("restart", "release", "passivate")
    ),
    Route(
        method="POST",
        path=f"{_ACTOR}/trace",
        scopes=ADMIN,
        body=json_body(TraceBody),
        is_body_required=False,
        answers={200: ActorObject},
        problems=("actor_unknown", "not_for_this_actor"),
    ),
    Route(
        method="GET",
        path=f"{_ACTOR}/trace",
        scopes=ADMIN,
        answers={200: PageOf(TraceMessage)},
        problems=("actor_unknown",),
    ),
    # The trail.
    Route(
        method="GET",
        path="/admin/v1/audit",
        scopes=ADMIN,
        query={"organization_id": NAME, "action": NAME, **PAGING},
        answers={200: PageOf(AuditObject)},
    ),
    Route(
        method="GET",
        path="/admin/v1/dead-letters",
        scopes=ADMIN,
        query={"address": NAME, **PAGING},
        answers={200: PageOf(DeadLetterObject)},
    ),
    Route(
        method="GET",
        path="/admin/v1/crashes",
        scopes=ADMIN,
        query={"limit": LIMIT},
        answers={200: PageOf(CrashObject)},
    ),
    Route(
        method="GET",
        path=_USER,
        scopes=ADMIN,
        query={"reason": NAME},
        answers={200: Held},
        problems=("organization_unknown",),
    ),
    Route(
        method="DELETE",
        path=_USER,
        scopes=ADMIN,
        query={"reason": NAME},
        answers={200: Erased},
        problems=("organization_unknown", "user_active"),
    ),
    # Charges.
    Route(
        method="GET",
        path="/admin/v1/charges",
        scopes=ADMIN,
        query={
            "state": one_of(*(each.value for each in ChargeState)),
            "organization_id": NAME,
            **PAGING,
        },
        answers={200: PageOf(ChargeObject)},
        problems=("billing_off",),
    ),
    *(
        Route(
            method="POST",
            path=f"/admin/v1/charges/<charge_id>/{verb}",
            scopes=ADMIN,
            body=json_body(OrderBody),
            is_body_required=False,
            answers={200: ChargeObject},
            problems=("billing_off", "charge_unknown", "charge_not_held"),
        )
        for verb in ("release", "void")
    ),
    # Jobs, reports, reconciliation.
    Route(
        method="GET",
        path="/admin/v1/jobs",
        scopes=ADMIN,
        query=PAGING,
        answers={200: PageOf(JobObject)},
    ),
    Route(
        method="GET",
        path="/admin/v1/jobs/<name>/runs",
        scopes=ADMIN,
        answers={200: PageOf(RunObject)},
        problems=("job_unknown",),
    ),
    Route(
        method="POST",
        path="/admin/v1/jobs/<name>/run",
        scopes=ADMIN,
        answers={202: RunObject},
        problems=("job_unknown", "job_running"),
    ),
    Route(
        method="GET",
        path="/admin/v1/findings",
        scopes=ADMIN,
        query={"kind": NAME, "organization_id": NAME, **PAGING},
        answers={200: PageOf(FindingObject)},
    ),
    Route(
        method="GET",
        path="/admin/v1/reports/<date>",
        scopes=ADMIN,
        query={"refresh": FLAG},
        answers={200: Report},
        media={200: (MARKDOWN,)},
        problems=("report_unknown",),
    ),
    Route(
        method="GET",
        path="/admin/v1/revenue",
        scopes=ADMIN,
        query={"date": DATE},
        answers={200: {"anyOf": [LiveRevenue, DayRevenue]}},
        problems=("report_unknown",),
    ),
    Route(
        method="POST",
        path="/admin/v1/reconcile/ledger",
        scopes=ADMIN,
        query={"dry_run": FLAG},
        answers={200: BooksReconciled},
    ),
    Route(
        method="POST",
        path="/admin/v1/reconcile/stripe",
        scopes=ADMIN,
        query={"dry_run": FLAG},
        answers={200: StripeReconciled},
        problems=STRIPE_TROUBLE,
    ),
    # Stripe's events.
    Route(
        method="GET",
        path="/admin/v1/stripe/events",
        scopes=ADMIN,
        query={"state": one_of(*STATES), **PAGING},
        answers={200: PageOf(InboxObject)},
    ),
    Route(
        method="POST",
        path="/admin/v1/stripe/events/<event_id>/retry",
        scopes=ADMIN,
        answers={202: Retried},
        problems=("event_unknown",),
    ),
)
