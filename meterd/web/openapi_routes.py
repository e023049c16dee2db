"""Every route: who may ask, what is sent, what comes back.

The structures named here are those that validate and answer, so their shapes cannot differ from
what happens; a test holds this table against the routes that are registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs
import msgspec

from meterd.core.organization import DenialReason
from meterd.core.plan import Resource
from meterd.core.task import TaskState
from meterd.web.billing import CheckoutBody, OrderBody, PortalBody
from meterd.web.customer_schema import EndpointPatch, NewEndpointBody, SettingsBody
from meterd.web.customer_shapes import (
    Address,
    DeliveryObject,
    EndpointObject,
    KeyObject,
    NewEndpoint,
    NewKey,
    SettingsObject,
    Ticket,
)
from meterd.web.event_schema import CloudEventBody, EventBody, VoidBody
from meterd.web.events import CLOUD, CLOUD_BATCH, EventsAnswer, VoidAnswer
from meterd.web.reply import JSON
from meterd.web.schema import (
    AdjustmentBody,
    FinishBody,
    HeartbeatBody,
    NewKeyBody,
    NewOrganizationBody,
    OrganizationPatch,
    StartTaskBody,
)
from meterd.web.shapes import FinishedTask, HeartbeatAnswer, Quota, RowObject, TaskObject
from meterd.web.usage_export import CSV
from meterd.web.usage_shapes import DayObject, InvoicePreview, PeriodObject, Usage


Schema = Mapping[str, Any]
Struct = type[msgspec.Struct]

TEXT: Final[Schema] = {"type": "string"}
NAME: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 128}
LABEL: Final[Schema] = {"type": "string", "pattern": r"^\d{4}-\d{2}(-\d{2}(T[0-9:.]+Z)?)?$"}
FLAG: Final[Schema] = {"type": "string", "enum": ["true", "false"]}
PAGING: Final[Mapping[str, Schema]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 100},
    "cursor": {"type": "string", "description": "`next_cursor` of the page before."},
}
OBJECT: Final[Schema] = {"type": "object"}
PLAN_REFUSALS: Final = tuple(reason.value for reason in DenialReason)


@attrs.frozen
class PageOf:
    """A page of a list of these."""

    item: Struct | None = None


@attrs.frozen
class ListOf:
    """A bare array of these, as a request."""

    item: Struct


Answer = Struct | PageOf | Schema | str | None
"""A structure, a page, a schema, `text/plain` for text, or nothing at all."""


@attrs.frozen(kw_only=True)
class Route:
    """One operation."""

    method: str
    path: str
    """As Quart has it."""
    scopes: tuple[str, ...] = ()
    """Any of these; `admin`: an operator's key; none: no key."""
    query: Mapping[str, Schema] = attrs.Factory(dict)
    body: Mapping[str, Struct | ListOf | Schema] = attrs.Factory(dict)
    """By media type."""
    is_body_required: bool = True
    answers: Mapping[int, Answer]
    media: Mapping[int, tuple[str, ...]] = attrs.Factory(dict)
    """Media types of answers that are not JSON alone."""
    problems: tuple[str, ...] = ()
    """Codes beyond what any such route may answer."""
    takes_keys: bool = True
    """Whether a POST honours `Idempotency-Key`."""


def _json(kind: Struct) -> dict[str, Struct | ListOf | Schema]:
    return {JSON: kind}


READ, AGENT, MANAGE = ("read",), ("agent",), ("manage",)
CHECK, VOIDERS, ADMIN = ("agent", "read"), ("agent", "manage"), ("admin",)

_TASK: Final = "/v1/tasks/<path:task_id>"
_ORGANIZATION: Final = "/admin/v1/organizations/<organization_id>"
_ENDPOINTS: Final = "/v1/webhook-endpoints"
_ACTOR: Final = "/admin/v1/actors/<path:address>"

CUSTOMER_ROUTES: Final = (
    Route(
        method="GET",
        path="/v1/quota/check",
        scopes=CHECK,
        query={"agent_id": NAME},
        answers={200: Quota},
        problems=PLAN_REFUSALS,
    ),
    Route(method="GET", path="/v1/quota", scopes=CHECK, answers={200: Quota}),
    Route(
        method="POST",
        path="/v1/tasks",
        scopes=AGENT,
        body=_json(StartTaskBody),
        answers={201: TaskObject, 200: TaskObject},
        problems=(*PLAN_REFUSALS, "task_conflict"),
    ),
    Route(
        method="POST",
        path=f"{_TASK}/heartbeat",
        scopes=AGENT,
        body=_json(HeartbeatBody),
        answers={200: HeartbeatAnswer},
        problems=("task_unknown", "task_closed"),
        takes_keys=False,
    ),
    Route(
        method="POST",
        path=f"{_TASK}/finish",
        scopes=AGENT,
        body=_json(FinishBody),
        answers={200: FinishedTask},
        problems=("task_unknown", "task_closed"),
        takes_keys=False,
    ),
    Route(
        method="GET",
        path="/v1/tasks",
        scopes=READ,
        query={"state": {"type": "string", "enum": [s.value for s in TaskState]}, **PAGING},
        answers={200: PageOf(TaskObject)},
    ),
    Route(
        method="GET",
        path=_TASK,
        scopes=READ,
        answers={200: TaskObject},
        problems=("task_unknown", "method_not_allowed"),
    ),
    Route(
        method="POST",
        path="/v1/events",
        scopes=AGENT,
        body={
            JSON: {"anyOf": [EventBody, ListOf(EventBody)]},
            CLOUD: CloudEventBody,
            CLOUD_BATCH: ListOf(CloudEventBody),
        },
        answers={200: EventsAnswer},
        problems=("id_conflict", "time_out_of_range", "cost_too_large"),
    ),
    Route(
        method="POST",
        path="/v1/events/<path:event_id>/void",
        scopes=VOIDERS,
        body=_json(VoidBody),
        answers={200: VoidAnswer},
        problems=("event_unknown", "event_ambiguous"),
    ),
    Route(
        method="GET",
        path="/v1/usage",
        scopes=READ,
        query={"period": LABEL},
        answers={200: Usage},
        problems=("period_unknown",),
    ),
    Route(
        method="GET",
        path="/v1/usage/daily",
        scopes=READ,
        query={"days": {"type": "integer", "minimum": 1, "maximum": 366, "default": 30}},
        answers={200: PageOf(DayObject)},
    ),
    Route(
        method="GET",
        path="/v1/usage/records",
        scopes=READ,
        query={
            "period": LABEL,
            "task_id": NAME,
            "agent_id": NAME,
            "resource_type": {"type": "string", "enum": [r.value for r in Resource]},
            **PAGING,
        },
        answers={200: PageOf(RowObject)},
        media={200: (CSV,)},
    ),
    Route(
        method="GET",
        path="/v1/usage/periods",
        scopes=READ,
        query=PAGING,
        answers={200: PageOf(PeriodObject)},
    ),
    Route(method="GET", path="/v1/invoice/preview", scopes=READ, answers={200: InvoicePreview}),
    Route(
        method="GET",
        path="/v1/usage/live",
        answers={101: None},
        problems=("upgrade_required",),
    ),
    Route(
        method="POST",
        path="/v1/usage/live/ticket",
        scopes=READ,
        answers={201: Ticket},
        takes_keys=False,
    ),
    Route(method="GET", path="/v1/settings", scopes=MANAGE, answers={200: SettingsObject}),
    Route(
        method="PUT",
        path="/v1/settings",
        scopes=MANAGE,
        body=_json(SettingsBody),
        answers={200: SettingsObject},
    ),
    Route(
        method="GET",
        path="/v1/keys",
        scopes=MANAGE,
        query=PAGING,
        answers={200: PageOf(KeyObject)},
    ),
    Route(
        method="POST",
        path="/v1/keys",
        scopes=MANAGE,
        body=_json(NewKeyBody),
        answers={201: NewKey},
        problems=("*",),
    ),
    Route(
        method="DELETE",
        path="/v1/keys/<key_id>",
        scopes=MANAGE,
        answers={204: None},
        problems=("key_unknown",),
    ),
    Route(
        method="GET",
        path=_ENDPOINTS,
        scopes=MANAGE,
        query=PAGING,
        answers={200: PageOf(EndpointObject)},
        problems=("*",),
    ),
    Route(
        method="POST",
        path=_ENDPOINTS,
        scopes=MANAGE,
        body=_json(NewEndpointBody),
        answers={201: NewEndpoint},
        problems=("*",),
    ),
    Route(
        method="GET",
        path=f"{_ENDPOINTS}/<endpoint_id>",
        scopes=MANAGE,
        answers={200: EndpointObject},
        problems=("endpoint_unknown",),
    ),
    Route(
        method="PATCH",
        path=f"{_ENDPOINTS}/<endpoint_id>",
        scopes=MANAGE,
        body=_json(EndpointPatch),
        answers={200: EndpointObject},
        problems=("*",),
    ),
    Route(
        method="DELETE",
        path=f"{_ENDPOINTS}/<endpoint_id>",
        scopes=MANAGE,
        answers={204: None},
        problems=("endpoint_unknown",),
    ),
    Route(
        method="POST",
        path=f"{_ENDPOINTS}/<endpoint_id>/test",
        scopes=MANAGE,
        answers={202: DeliveryObject},
        problems=("endpoint_unknown",),
    ),
    Route(
        method="GET",
        path=f"{_ENDPOINTS}/<endpoint_id>/deliveries",
        scopes=MANAGE,
        query={
            "state": {"type": "string", "enum": ["pending", "delivered", "failed"]},
            **PAGING,
        },
        answers={200: PageOf(DeliveryObject)},
        problems=("endpoint_unknown",),
    ),
    Route(
        method="POST",
        path=f"{_ENDPOINTS}/<endpoint_id>/deliveries/<delivery_id>/resend",
        scopes=MANAGE,
        answers={202: DeliveryObject},
        problems=("endpoint_unknown", "delivery_unknown"),
    ),
    Route(
        method="GET",
        path="/v1/agents/stream",
        answers={101: None},
        problems=("upgrade_required",),
    ),
    Route(
        method="POST",
        path="/v1/billing/checkout",
        scopes=MANAGE,
        body=_json(CheckoutBody),
        is_body_required=False,
        answers={200: Address, 201: Address},
        problems=("*",),
    ),
    Route(
        method="POST",
        path="/v1/billing/portal",
        scopes=MANAGE,
        body=_json(PortalBody),
        is_body_required=False,
        answers={200: Address, 201: Address},
        problems=("*",),
    ),
    Route(
        method="POST",
        path="/api/webhooks/stripe",
        body={JSON: OBJECT},
        answers={200: OBJECT},
        problems=("*",),
        takes_keys=False,
    ),
)

OPERATOR_ROUTES: Final = (
    Route(
        method="POST",
        path="/admin/v1/organizations",
        scopes=ADMIN,
        body=_json(NewOrganizationBody),
        answers={201: OBJECT},
        problems=("organization_exists", "customer_taken"),
    ),
    Route(
        method="GET",
        path="/admin/v1/organizations",
        scopes=ADMIN,
        query=PAGING,
        answers={200: PageOf()},
    ),
    Route(
        method="GET",
        path=_ORGANIZATION,
        scopes=ADMIN,
        answers={200: OBJECT},
        problems=("organization_unknown",),
    ),
    Route(
        method="PATCH",
        path=_ORGANIZATION,
        scopes=ADMIN,
        body=_json(OrganizationPatch),
        answers={200: OBJECT},
        problems=("*",),
    ),
    Route(
        method="POST",
        path=f"{_ORGANIZATION}/adjustments",
        scopes=ADMIN,
        body=_json(AdjustmentBody),
        answers={201: PageOf(RowObject)},
        problems=("organization_unknown", "credit_exceeds_usage", "exceeds_hard_limit"),
    ),
    Route(
        method="POST",
        path=f"{_ORGANIZATION}/keys",
        scopes=ADMIN,
        body=_json(NewKeyBody),
        answers={201: OBJECT},
        problems=("organization_unknown",),
    ),
    Route(
        method="GET",
        path=f"{_ORGANIZATION}/keys",
        scopes=ADMIN,
        query=PAGING,
        answers={200: PageOf()},
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
        body=_json(CheckoutBody),
        is_body_required=False,
        answers={200: Address, 201: Address},
        problems=("*",),
    ),
    Route(
        method="POST",
        path=f"{_ORGANIZATION}/billing/portal",
        scopes=ADMIN,
        body=_json(PortalBody),
        is_body_required=False,
        answers={200: Address, 201: Address},
        problems=("*",),
    ),
    Route(
        method="GET",
        path="/admin/v1/actors",
        scopes=ADMIN,
        query={
            "kind": {"type": "string", "enum": ["organization", "service"]},
            "sort": TEXT,
            "limit": PAGING["limit"],
        },
        answers={200: PageOf()},
    ),
    Route(
        method="GET",
        path=_ACTOR,
        scopes=ADMIN,
        answers={200: OBJECT},
        problems=("actor_unknown",),
    ),
    *(
        Route(
            method="POST",
            path=f"{_ACTOR}/{verb}",
            scopes=ADMIN,
            body={JSON: OBJECT},
            is_body_required=False,
            answers={200: OBJECT},
            problems=("*",),
        )
        for verb in ("restart", "release", "passivate", "trace")
    ),
    Route(
        method="GET",
        path=f"{_ACTOR}/trace",
        scopes=ADMIN,
        answers={200: OBJECT},
        problems=("*",),
    ),
    Route(
        method="GET",
        path="/admin/v1/audit",
        scopes=ADMIN,
        query={"organization_id": TEXT, "action": TEXT, **PAGING},
        answers={200: PageOf()},
    ),
    Route(
        method="GET",
        path="/admin/v1/dead-letters",
        scopes=ADMIN,
        query={"address": TEXT, **PAGING},
        answers={200: PageOf()},
    ),
    Route(
        method="GET",
        path="/admin/v1/crashes",
        scopes=ADMIN,
        query={"limit": PAGING["limit"]},
        answers={200: PageOf()},
    ),
    *(
        Route(
            method=method,
            path="/admin/v1/users/<organization_id>/<path:user_id>",
            scopes=ADMIN,
            query={"reason": NAME},
            answers={200: OBJECT},
            problems=("organization_unknown", "user_active", "not_found"),
        )
        for method in ("GET", "DELETE")
    ),
    Route(
        method="GET",
        path="/admin/v1/charges",
        scopes=ADMIN,
        query={"state": TEXT, "organization_id": TEXT, **PAGING},
        answers={200: PageOf()},
        problems=("*",),
    ),
    *(
        Route(
            method="POST",
            path=f"/admin/v1/charges/<charge_id>/{verb}",
            scopes=ADMIN,
            body=_json(OrderBody),
            is_body_required=False,
            answers={200: OBJECT},
            problems=("*",),
        )
        for verb in ("release", "void")
    ),
    Route(method="GET", path="/admin/v1/jobs", scopes=ADMIN, query=PAGING, answers={200: PageOf()}),
    Route(
        method="GET",
        path="/admin/v1/jobs/<name>/runs",
        scopes=ADMIN,
        answers={200: PageOf()},
        problems=("*",),
    ),
    Route(
        method="POST",
        path="/admin/v1/jobs/<name>/run",
        scopes=ADMIN,
        answers={200: OBJECT, 202: OBJECT},
        problems=("*",),
    ),
    Route(
        method="GET",
        path="/admin/v1/findings",
        scopes=ADMIN,
        query={"kind": TEXT, "organization_id": TEXT, **PAGING},
        answers={200: PageOf()},
        problems=("*",),
    ),
    Route(
        method="GET",
        path="/admin/v1/reports/<date>",
        scopes=ADMIN,
        query={"refresh": FLAG},
        answers={200: OBJECT},
        media={200: ("text/markdown",)},
        problems=("*",),
    ),
    Route(
        method="GET",
        path="/admin/v1/revenue",
        scopes=ADMIN,
        query={"date": {"type": "string", "format": "date"}},
        answers={200: OBJECT},
        problems=("*",),
    ),
    Route(
        method="POST",
        path="/admin/v1/reconcile/ledger",
        scopes=ADMIN,
        query={"dry_run": FLAG},
        answers={200: OBJECT},
        problems=("*",),
    ),
    Route(
        method="POST",
        path="/admin/v1/reconcile/stripe",
        scopes=ADMIN,
        query={"dry_run": FLAG},
        answers={200: OBJECT},
        problems=("*",),
    ),
    Route(
        method="GET",
        path="/admin/v1/stripe/events",
        scopes=ADMIN,
        query={"state": TEXT, **PAGING},
        answers={200: PageOf()},
        problems=("*",),
    ),
    Route(
        method="POST",
        path="/admin/v1/stripe/events/<event_id>/retry",
        scopes=ADMIN,
        answers={200: OBJECT, 202: OBJECT},
        problems=("*",),
    ),
)

PUBLIC_ROUTES: Final = (
    Route(method="GET", path="/healthz", answers={200: OBJECT}),
    Route(method="GET", path="/readyz", answers={200: OBJECT, 503: OBJECT}),
    Route(method="GET", path="/metrics", answers={200: "text/plain"}),
    Route(method="GET", path="/openapi.json", answers={200: OBJECT}),
    Route(method="GET", path="/docs", answers={200: "text/html"}),
    Route(method="GET", path="/docs/page.js", answers={200: "text/javascript"}),
)

ROUTES: Final = (*CUSTOMER_ROUTES, *OPERATOR_ROUTES, *PUBLIC_ROUTES)
