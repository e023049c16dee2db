"""What events say: meterd's own JSON, and CloudEvents 1.0 in structured and batch mode.

Both become the same `UsageEvent`, so an event is a copy of itself whichever way it was sent.
CloudEvents' extension attributes are accepted and ignored, as its specification asks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from meterd.core.event import CALLS_MAX, EVENT_NAME_CHARACTERS_MAX, UsageEvent
from meterd.core.plan import Resource
from meterd.core.units import INSTANT_MS_MAX, MINUTE_MS, from_datetime
from meterd.core.usage import ROW_MINUTES_MAX
from meterd.errors import Problem, RequestInvalidError
from meterd.web.codec import canonical_json, decode
from meterd.web.schema import AgentId, Metadata, Reason, Request, UserId


DEFAULT_SOURCE: Final = "default"
"""The source of an event that names none."""

CLOUD_ATTRIBUTES: Final = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema"}
    | {"data"}
)

CLOUD_EXTENSIONS: Final = {
    r"^(?!data$)[a-z0-9]{1,64}$": {"type": ["string", "integer", "boolean", "null"]}
}
"""Extension attributes, as patterns of properties in JSON Schema."""

_EXTENSION = re.compile(r"[a-z0-9]{1,64}", re.ASCII)
_JSON_CONTENT = re.compile(r"application/(?:[a-z0-9.!#$&^_-]+\+)?json(?:[ \t]*;.*)?", re.IGNORECASE)
_RFC3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9}))?"
    r"(?:[Zz]|([+-])(\d{2}):(\d{2}))",
    re.ASCII,
)
_HOURS_MAX, _MINUTES_MAX = 23, 59


def instant_in(text: str) -> int | None:
    """Return an RFC 3339 instant in epoch milliseconds, or None when it is none.

    An offset is required, a leap second is not known, and more than milliseconds is cut off.
    """
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    *parts, fraction, sign, hours, minutes = found.groups()
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    if int(hours or 0) > _HOURS_MAX or int(minutes or 0) > _MINUTES_MAX:
        return None
    zone = timezone(-offset if sign == "-" else offset)
    microsecond = int((fraction or "").ljust(3, "0")[:3]) * 1_000
    year, month, day, hour, minute, second = map(int, parts)
    try:
        local = datetime(year, month, day, hour, minute, second, microsecond, tzinfo=zone)
        at_ms = from_datetime(local)
    except (ValueError, OverflowError):
        return None
    return at_ms if at_ms <= INSTANT_MS_MAX else None  # its offset can put it into year 10000


def is_event_name(text: str) -> bool:
    """Tell whether text can be an event's id or source."""
    return 0 < len(text) <= EVENT_NAME_CHARACTERS_MAX and text.isprintable()


def _event_name(description: str) -> Meta:
    return Meta(
        min_length=1,
        max_length=EVENT_NAME_CHARACTERS_MAX,
        description=description,
        extra={
            "must": f"must be 1 to {EVENT_NAME_CHARACTERS_MAX} printable characters",
            "rule": is_event_name,
        },
    )


EventId = Annotated[str, _event_name("Unique within its source, for ever: copies count once.")]
EventSource = Annotated[str, _event_name("Who counted: ids of different sources are different.")]
EventTime = Annotated[
    str,
    Meta(
        max_length=64,
        description="RFC 3339 with an offset; now if absent. From 35 days ago to 5 minutes ahead.",
        extra={
            "must": "must be an RFC 3339 instant with an offset, such as 2026-02-12T09:30:00Z",
            "rule": lambda text: instant_in(text) is not None,
        },
        extra_json_schema={"format": "date-time"},
    ),
]
EventResource = Annotated[
    Literal["api_call", "websocket_minute"],
    Meta(
        description="What was used.",
        extra={"must": "must be one of api_call, websocket_minute"},
    ),
]
EventQuantity = Annotated[
    int,
    Meta(
        ge=1,
        le=CALLS_MAX,
        description=f"Calls, or whole minutes (at most {ROW_MINUTES_MAX}).",
        extra={"must": f"must be an integer from 1 to {CALLS_MAX}"},
    ),
]


JsonMedia = Annotated[
    str,
    Meta(
        max_length=256,
        description="JSON, if given.",
        extra={
            "must": "must be a JSON media type",
            "rule": lambda text: _JSON_CONTENT.fullmatch(text) is not None,
        },
    ),
]
DataSchema = Annotated[
    str,
    Meta(max_length=1_024, extra={"must": "must be text of at most 1024 characters"}),
]
SpecVersion = Annotated[Literal["1.0"], Meta(extra={"must": 'must be "1.0"'})]


class EventBody(Request, frozen=True):
    """Usage as somebody else counted it."""

    id: EventId
    resource_type: EventResource
    source: EventSource = DEFAULT_SOURCE
    time: EventTime | None = None
    quantity: EventQuantity = 1
    user_id: UserId | None = None
    agent_id: AgentId | None = None
    metadata: Metadata | None = None


class CloudEventData(Request, frozen=True):
    """The part of a CloudEvent that its type defines."""

    quantity: EventQuantity = 1
    user_id: UserId | None = None
    metadata: Metadata | None = None


class CloudEventBody(Request, frozen=True):
    """A CloudEvent in structured mode; extension attributes are accepted and ignored."""

    specversion: SpecVersion
    id: EventId
    source: EventSource
    type: EventResource
    subject: AgentId | None = None
    time: EventTime | None = None
    datacontenttype: JsonMedia | None = None
    dataschema: DataSchema | None = None
    data: CloudEventData | None = None


class VoidBody(Request, frozen=True):
    """Take an event back."""

    reason: Reason
    source: EventSource | None = None


def own_event(value: Any) -> UsageEvent:
    """Return the event that meterd's own JSON describes. Errors: RequestInvalidError."""
    body = decode(EventBody, value)
    return _event(
        body.id,
        body.source,
        body.resource_type,
        quantity=body.quantity,
        time=body.time,
        agent_id=body.agent_id,
        user_id=body.user_id,
        metadata=body.metadata,
        quantity_pointer="/quantity",
    )


def cloud_event(value: Any) -> UsageEvent:
    """Return the event that a CloudEvent describes. Errors: RequestInvalidError."""
    if isinstance(value, dict):
        value = {name: item for name, item in value.items() if not _is_extension(name, item)}
    body = decode(CloudEventBody, value)
    data = body.data or CloudEventData()
    return _event(
        body.id,
        body.source,
        body.type,
        quantity=data.quantity,
        time=body.time,
        agent_id=body.subject,
        user_id=data.user_id,
        metadata=data.metadata,
        quantity_pointer="/data/quantity",
    )


def _is_extension(name: str, value: object) -> bool:
    is_simple = isinstance(value, str | int | bool) or value is None
    is_known = name in CLOUD_ATTRIBUTES or name == "data_base64"
    return not is_known and is_simple and _EXTENSION.fullmatch(name) is not None


def _event(  # noqa: PLR0913  # the fields of an event
    event_id: str,
    source: str,
    resource: str,
    *,
    quantity: int,
    time: str | None,
    agent_id: str | None,
    user_id: str | None,
    metadata: Mapping[str, Any] | None,
    quantity_pointer: str,
) -> UsageEvent:
    is_time = resource == Resource.WEBSOCKET_MINUTE.value
    if is_time and quantity > ROW_MINUTES_MAX:
        detail = f"must be an integer from 1 to {ROW_MINUTES_MAX} for websocket_minute"
        raise RequestInvalidError([Problem(quantity_pointer, detail)])
    return UsageEvent(
        source=source,
        id=event_id,
        resource=Resource(resource),
        amount=quantity * MINUTE_MS if is_time else quantity,
        at_ms=None if time is None else instant_in(time),
        agent_id=agent_id,
        user_id=user_id,
        metadata_json=canonical_json(metadata) if metadata else "{}",
    )
