"""What customers may ask: who, what is sent, what comes back; and Stripe, which asks in their name.

The structures named here are those that validate and answer, so their shapes cannot differ from
what happens.
"""

from __future__ import annotations

from typing import Final

from meterd.core.organization import DenialReason
from meterd.core.plan import Resource
from meterd.core.stripe_objects import ID_CHARACTERS_MAX
from meterd.core.task import TaskState
from meterd.ports.webhooks import DELIVERED, FAILED, PENDING
from meterd.web.billing import CheckoutBody, PortalBody
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
from meterd.web.openapi_route import (
    NAME,
    PAGING,
    STRIPE_TROUBLE,
    ListOf,
    PageOf,
    Route,
    Schema,
    json_body,
    one_of,
)
from meterd.web.reply import JSON
from meterd.web.schema import FinishBody, HeartbeatBody, NewKeyBody, StartTaskBody
from meterd.web.shapes import FinishedTask, HeartbeatAnswer, Quota, RowObject, TaskObject
from meterd.web.stripe_webhook import Received
from meterd.web.usage_export import CSV
from meterd.web.usage_shapes import DayObject, InvoicePreview, PeriodObject, Usage


READ, AGENT, MANAGE = ("read",), ("agent",), ("manage",)
CHECK, VOIDERS = ("agent", "read"), ("agent", "manage")

PLAN_REFUSALS: Final = tuple(reason.value for reason in DenialReason)
LABEL: Final[Schema] = {"type": "string", "pattern": r"^\d{4}-\d{2}(-\d{2}(T[0-9:.]+Z)?)?$"}
STRIPE_EVENT: Final[Schema] = {
    "type": "object",
    "description": "https://docs.stripe.com/api/events/object; what else it has is not judged.",
    "properties": {
        "id": {"type": "string", "pattern": rf"^[ -~]{{1,{ID_CHARACTERS_MAX}}}$"},
        "object": {"type": "string", "enum": ["event"]},
        "type": {"type": "string", "pattern": r"^[ -~]{1,255}$"},
    },
    "required": ["id", "object", "type"],
}

_TASK: Final = "/v1/tasks/<path:task_id>"
_ENDPOINTS: Final = "/v1/webhook-endpoints"

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
        body=json_body(StartTaskBody),
        answers={201: TaskObject, 200: TaskObject},
        problems=(*PLAN_REFUSALS, "task_conflict"),
    ),
    Route(
        method="POST",
        path=f"{_TASK}/heartbeat",
        scopes=AGENT,
        body=json_body(HeartbeatBody),
        answers={200: HeartbeatAnswer},
        problems=("task_unknown", "task_closed"),
        takes_keys=False,
    ),
    Route(
        method="POST",
        path=f"{_TASK}/finish",
        scopes=AGENT,
        body=json_body(FinishBody),
        answers={200: FinishedTask},
        problems=("task_unknown", "task_closed"),
        takes_keys=False,
    ),
    Route(
        method="GET",
        path="/v1/tasks",
        scopes=READ,
        query={"state": one_of(*(each.value for each in TaskState)), **PAGING},
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
        body=json_body(VoidBody),
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
            "resource_type": one_of(*(each.value for each in Resource)),
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
        body=json_body(SettingsBody),
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
        body=json_body(NewKeyBody),
        answers={201: NewKey},
        problems=("too_many_keys",),
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
    ),
    Route(
        method="POST",
        path=_ENDPOINTS,
        scopes=MANAGE,
        body=json_body(NewEndpointBody),
        answers={201: NewEndpoint},
        problems=("too_many_endpoints",),
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
        body=json_body(EndpointPatch),
        answers={200: EndpointObject},
        problems=("endpoint_unknown",),
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
            "state": one_of(PENDING, DELIVERED, FAILED),
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
        path="/v1/billing/portal",
        scopes=MANAGE,
        body=json_body(PortalBody),
        is_body_required=False,
        answers={201: Address},
        problems=("organization_unknown", *STRIPE_TROUBLE),
    ),
    Route(
        method="POST",
        path="/api/webhooks/stripe",
        body={JSON: STRIPE_EVENT},
        answers={200: Received},
        problems=("bad_signature",),
        takes_keys=False,
    ),
)
