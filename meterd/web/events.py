"""`POST /v1/events`: usage that others counted, booked once for ever; and taking it back.

Rule 1: an answer is given when what it says is committed; until then the same events may be sent
again, in any grouping, and count once.
Rule 2: in an array every event stands for itself; one that is wrong hinders no other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from quart import Blueprint, Response, request

from meterd.core.commands import (
    EventAmbiguous,
    EventUnknown,
    PeriodUnknown,
    Recorded,
    RecordEvents,
    Voided,
    VoidEvent,
)
from meterd.core.event import EVENTS_MAX, EventStatus, UsageEvent
from meterd.core.units import rfc3339
from meterd.errors import Problem, RequestInvalidError
from meterd.web.codec import parse_json
from meterd.web.event_schema import VoidBody, cloud_event, is_event_name, own_event
from meterd.web.problems import KINDS, ProblemError
from meterd.web.quota import quota_view
from meterd.web.reply import Reply, json_reply, rate_limit_headers
from meterd.web.requests import body_as, organization, query, response, services
from meterd.web.services import WebServices
from meterd.web.shapes import Instant, Quota, quota_object


AGENT_SCOPE: Final = "agent"
EVENTS_PREFIX: Final = "/v1/events/"

CLOUD: Final = "application/cloudevents+json"
CLOUD_BATCH: Final = "application/cloudevents-batch+json"
_MEDIA_TYPE = re.compile(
    r"(application/(?:cloudevents(?:-batch)?\+)?json)[ \t]*(?:;[ \t]*charset=\"?utf-8\"?[ \t]*)?",
    re.IGNORECASE,
)

_REFUSALS: Final = {
    EventStatus.ID_CONFLICT: "id_conflict",
    EventStatus.TIME_OUT_OF_RANGE: "time_out_of_range",
    EventStatus.COST_TOO_LARGE: "cost_too_large",
}

events = Blueprint("events", __name__)


class EventProblem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One field of an event that is wrong."""

    pointer: str
    detail: str


class EventError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an event was not booked."""

    code: str
    detail: str
    errors: list[EventProblem] = msgspec.field(default_factory=list)


class EventItem(msgspec.Struct, frozen=True):
    """What became of one event of an array."""

    id: Annotated[str | None, Meta(description="null when the event has no valid id.")]
    status: Annotated[str, Meta(description="accepted, duplicate or rejected")]
    error: EventError | None = None


class EventsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of events; durable."""

    accepted: int
    duplicates: int
    rejected: int
    items: list[EventItem]
    quota: Quota


class VoidAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was taken back."""

    id: str
    source: str
    status: str
    reason: str
    voided_at: Instant
    record_id: Annotated[str, Meta(description="The compensating ledger row.")]


async def booked(
    bundle: WebServices, organization_id: str, given: Sequence[UsageEvent | EventItem]
) -> list[EventItem]:
    """Book the events among `given`, durably; items that are refused already stay what they are.

    Errors: as `Organizations.ask` and `durable`.
    """
    found = [each for each in given if isinstance(each, UsageEvent)]
    told: Iterator[EventStatus] = iter(())
    if found:
        answer = await bundle.organizations.ask(organization_id, RecordEvents(events=found))
        assert isinstance(answer.outcome, Recorded), answer
        told = iter(answer.outcome.statuses)
        await bundle.organizations.durable(organization_id, answer.seq)
    return [_item(each, next(told)) if isinstance(each, UsageEvent) else each for each in given]


async def items_reply(bundle: WebServices, organization_id: str, items: list[EventItem]) -> Reply:
    """Return the answer about events. Errors: as `Organizations.ask`."""
    view = await quota_view(bundle, organization_id)
    counts = [item.status for item in items]
    content = EventsAnswer(
        accepted=counts.count("accepted"),
        duplicates=counts.count("duplicate"),
        rejected=counts.count("rejected"),
        items=items,
        quota=quota_object(view),
    )
    return json_reply(200, content, rate_limit_headers(view))


def _item(event: UsageEvent, status: EventStatus) -> EventItem:
    code = _REFUSALS.get(status)
    if code is None:
        return EventItem(event.id, status.value)
    return EventItem(event.id, "rejected", EventError(code, KINDS[code].detail))


def _read(read: Callable[[Any], UsageEvent], value: object) -> UsageEvent | EventItem:
    """Return an event of an array, or the item that says what is wrong with it."""
    try:
        return read(value)
    except RequestInvalidError as error:
        kind = KINDS["invalid_request"]
        problems = [EventProblem(each.pointer, each.detail) for each in error.problems]
        event_id = value.get("id") if isinstance(value, dict) else None
        is_name = isinstance(event_id, str) and is_event_name(event_id)
        return EventItem(
            event_id if is_name else None,
            "rejected",
            EventError("invalid_request", kind.detail, problems),
        )


async def _body() -> tuple[Callable[[Any], UsageEvent], Any, bool]:
    """Return how to read an event, the JSON of the body, and whether it is an array of events.

    Errors: ProblemError (413, 415), BadJsonError (400), RequestInvalidError (422).
    """
    types = request.headers.getlist("content-type")
    found = _MEDIA_TYPE.fullmatch(types[0]) if len(types) == 1 else None
    if found is None:
        raise ProblemError("unsupported_media_type")
    media_type = found[1].lower()
    raw = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    value = parse_json(raw)
    is_array = isinstance(value, list)
    if media_type == CLOUD_BATCH and not is_array:
        raise RequestInvalidError([Problem("", "must be an array of events")])
    if media_type == CLOUD and is_array:
        raise RequestInvalidError([Problem("", "must be an object; an array is a batch")])
    if isinstance(value, list) and len(value) > EVENTS_MAX:
        raise RequestInvalidError([Problem("", f"must have at most {EVENTS_MAX} events")])
    return cloud_event if media_type in (CLOUD, CLOUD_BATCH) else own_event, value, is_array


@events.post("/v1/events")
async def record() -> Response:
    """Book one event or an array of them; safe to repeat."""
    organization_id = await organization(AGENT_SCOPE)
    query()
    read, value, is_array = await _body()
    bundle = services()
    given = [_read(read, each) for each in value] if is_array else [read(value)]
    items = await booked(bundle, organization_id, given)
    if not is_array and (error := items[0].error) is not None:
        is_time = error.code == "time_out_of_range"
        errors = [Problem("/time", error.detail)] if is_time else []
        raise ProblemError(error.code, errors=errors)
    return response(await items_reply(bundle, organization_id, items))


def _event_id(event_id: str) -> str:
    """Return the event id of the path; an encoded slash belongs to it, a bare one does not."""
    raw: bytes = request.scope.get("raw_path", b"").partition(b"?")[0]
    if len(raw.removeprefix(EVENTS_PREFIX.encode()).split(b"/")) != 2:  # noqa: PLR2004
        raise ProblemError("not_found")
    if not is_event_name(event_id):
        raise ProblemError("event_unknown")
    return event_id


@events.post("/v1/events/<path:event_id>/void")
async def void(event_id: str) -> Response:
    """Take an event back with a compensating ledger row; safe to repeat."""
    organization_id = await organization(AGENT_SCOPE, "manage")
    event_id = _event_id(event_id)
    query()
    body = await body_as(VoidBody)
    bundle = services()
    command = VoidEvent(event_id=event_id, source=body.source, reason=body.reason)
    answer = await bundle.organizations.ask(organization_id, command)
    match answer.outcome:
        case Voided(void=found):
            await bundle.organizations.durable(organization_id, answer.seq)
            content = VoidAnswer(
                id=found.event.id,
                source=found.event.source,
                status="voided",
                reason=found.reason,
                voided_at=rfc3339(found.at_ms),
                record_id=found.record_id,
            )
            return response(json_reply(200, content))
        case EventUnknown() | PeriodUnknown():
            raise ProblemError("event_unknown")
        case EventAmbiguous():
            raise ProblemError("event_ambiguous")
        case outcome:
            raise AssertionError(outcome)
