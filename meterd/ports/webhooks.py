"""What outgoing webhooks need from the outside: where they are kept, and who sends them.

Errors of the store are as every store's. A delivery is one notification for one endpoint; it
may be sent more than once, under the same id, and never twice at the same time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import attrs

from meterd.errors import MeterdError


TEST_KIND = "webhook.test"
"""What is sent when somebody presses the button."""

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
"""States of a delivery; a failed one has used up its attempts."""

ENDPOINTS_MAX = 16
"""Endpoints of one organization."""


class WebhookRefusedError(MeterdError):
    """The endpoint could not be asked, or must not be: says why, without what it answered."""

    transient = True


@attrs.frozen(kw_only=True)
class WebhookEndpoint:
    """Where an organization wants to be told."""

    id: str
    organization_id: str
    url: str
    kinds: tuple[str, ...] = ()
    """Which notifications; empty: every one."""
    description: str = ""
    secret: str = attrs.field(repr=False)
    """`whsec_` + base64: signs what is sent. Empty: what is stored cannot be opened."""
    created_at_ms: int
    created_by: str
    disabled_at_ms: int | None = None
    disabled_reason: str | None = None


@attrs.frozen(kw_only=True)
class Delivery:
    """What became of one notification for one endpoint."""

    id: str
    endpoint_id: str
    notification_id: str
    kind: str
    state: str = PENDING
    attempts: int = 0
    created_at_ms: int
    next_attempt_at_ms: int
    attempted_at_ms: int | None = None
    status: int | None = None
    """Of the last answer; `None`: there was none."""
    error: str | None = None
    duration_ms: int | None = None


@attrs.frozen(kw_only=True)
class DueDelivery:
    """A delivery to be made now, with everything that is sent."""

    delivery: Delivery
    endpoint: WebhookEndpoint
    at_ms: int
    """When it happened, not when it is sent."""
    data_json: str


@attrs.frozen(kw_only=True)
class EndpointChange:
    """What to change of an endpoint; `None` stays."""

    url: str | None = None
    kinds: tuple[str, ...] | None = None
    description: str | None = None
    is_disabled: bool | None = None


@attrs.frozen(kw_only=True)
class Asked:
    """Who asked for a change, for the audit log."""

    audit_id: str
    actor: str
    """The id of the key, or of the person."""
    at_ms: int


class WebhookStore(Protocol):
    """Endpoints and deliveries; what changes an endpoint is audited in the same transaction."""

    async def add_endpoint(self, endpoint: WebhookEndpoint) -> WebhookEndpoint | None:
        """Keep a new endpoint; None when the organization has as many as it may.

        A known id changes nothing: the endpoint is returned as it was made.
        """
        ...

    async def endpoints(self, organization_id: str) -> Sequence[WebhookEndpoint]:
        """Return an organization's endpoints, oldest first."""
        ...

    async def change_endpoint(
        self, organization_id: str, endpoint_id: str, change: EndpointChange, asked: Asked
    ) -> WebhookEndpoint | None:
        """Change an endpoint and return it; None when the organization has no such one."""
        ...

    async def remove_endpoint(self, organization_id: str, endpoint_id: str, asked: Asked) -> bool:
        """Forget an endpoint and its deliveries; False when there is none."""
        ...

    async def deliveries(
        self, endpoint_id: str, *, state: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[Delivery]:
        """Return an endpoint's deliveries, newest first; `after`: (created_at_ms, id)."""
        ...

    async def add_test(
        self, endpoint: WebhookEndpoint, notification_id: str, *, at_ms: int
    ) -> Delivery:
        """Keep a test notification for one endpoint only."""
        ...

    async def resend(self, endpoint_id: str, delivery_id: str, *, at_ms: int) -> Delivery | None:
        """Make a delivery due again, with all its attempts; None when there is no such one."""
        ...

    async def due_deliveries(
        self, *, now_ms: int, busy: Collection[str], limit: int
    ) -> Sequence[DueDelivery]:
        """Return what is due, the oldest of each endpoint; `busy` endpoints are left out."""
        ...

    async def settle_delivery(self, delivery: Delivery, *, disable: str | None = None) -> None:
        """Write what became of an attempt; `disable` says why its endpoint gets nothing more."""
        ...

    async def forget_notifications(self, *, before_ms: int) -> int:
        """Drop old notifications nobody waits for, and their deliveries; return how many."""
        ...


class WebhookSender(Protocol):
    """Posts to an address that somebody else chose."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Return the status of the answer. Errors: WebhookRefusedError."""
        ...
