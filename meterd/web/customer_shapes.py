"""What answers to a customer's administrator say: keys, settings, webhook endpoints, pages.

As in `meterd.web.shapes`; the OpenAPI document is made from these.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from meterd.core.units import rfc3339
from meterd.ports.keys import StoredKey
from meterd.ports.webhooks import PENDING, Delivery, WebhookEndpoint
from meterd.web.shapes import Instant


class KeyObject(msgspec.Struct, frozen=True, kw_only=True):
    """A key, without its text."""

    id: str
    name: str
    scopes: list[str]
    last4: Annotated[str, Meta(description="The end of its text, to know it by.")]
    created_at: Instant
    created_by: str
    revoked_at: Instant | None


class NewKey(KeyObject, frozen=True, kw_only=True):
    """A key as it is shown once."""

    key: Annotated[str, Meta(description="Its text: in this answer and nowhere else, ever.")]


class SettingsObject(msgspec.Struct, frozen=True, kw_only=True):
    """What the organization has decided for itself."""

    overage_cap_usd: Annotated[str | None, Meta(description="US dollars; null: no cap.")]
    thresholds: Annotated[list[int], Meta(description="In percent of the included minutes.")]


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """Opens the live feed once."""

    ticket: str
    expires_at: Instant


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where to go on in a browser."""

    url: str


class EndpointObject(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook endpoint, without its secret."""

    id: str
    url: str
    kinds: Annotated[list[str], Meta(description="What is sent; empty: everything.")]
    description: str
    created_at: Instant
    created_by: str
    disabled_at: Instant | None
    disabled_reason: str | None


class NewEndpoint(EndpointObject, frozen=True, kw_only=True):
    """A webhook endpoint as it is shown once."""

    secret: Annotated[str, Meta(description="Signs what is sent: in this answer alone.")]


class DeliveryObject(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one notification for one endpoint."""

    id: str
    webhook_id: Annotated[str, Meta(description="Of the notification: same when sent again.")]
    type: str
    state: Annotated[str, Meta(description="pending, delivered or failed")]
    attempts: int
    created_at: Instant
    attempted_at: Instant | None
    next_attempt_at: Instant | None
    status: Annotated[int | None, Meta(description="HTTP status of the last answer.")]
    error: str | None
    duration_ms: int | None


def key_object(key: StoredKey) -> KeyObject:
    """Return the shape of a key; never the key itself."""
    return KeyObject(
        id=key.id,
        name=key.name,
        scopes=sorted(key.scopes),
        last4=key.last4,
        created_at=rfc3339(key.created_at_ms),
        created_by=key.created_by,
        revoked_at=_optional(key.revoked_at_ms),
    )


def new_key(key: StoredKey, text: str) -> NewKey:
    """Return the shape of a key with its text."""
    return NewKey(**msgspec.structs.asdict(key_object(key)), key=text)


def endpoint_object(endpoint: WebhookEndpoint) -> EndpointObject:
    """Return the shape of an endpoint, without its secret."""
    return EndpointObject(
        id=endpoint.id,
        url=endpoint.url,
        kinds=list(endpoint.kinds),
        description=endpoint.description,
        created_at=rfc3339(endpoint.created_at_ms),
        created_by=endpoint.created_by,
        disabled_at=_optional(endpoint.disabled_at_ms),
        disabled_reason=endpoint.disabled_reason,
    )


def new_endpoint(endpoint: WebhookEndpoint) -> NewEndpoint:
    """Return the shape of an endpoint with its secret."""
    shown = msgspec.structs.asdict(endpoint_object(endpoint))
    return NewEndpoint(**shown, secret=endpoint.secret)


def delivery_object(delivery: Delivery) -> DeliveryObject:
    """Return the shape of a delivery."""
    is_pending = delivery.state == PENDING
    return DeliveryObject(
        id=delivery.id,
        webhook_id=delivery.notification_id,
        type=delivery.kind,
        state=delivery.state,
        attempts=delivery.attempts,
        created_at=rfc3339(delivery.created_at_ms),
        attempted_at=_optional(delivery.attempted_at_ms),
        next_attempt_at=rfc3339(delivery.next_attempt_at_ms) if is_pending else None,
        status=delivery.status,
        error=delivery.error,
        duration_ms=delivery.duration_ms,
    )


def _optional(instant_ms: int | None) -> str | None:
    return None if instant_ms is None else rfc3339(instant_ms)
