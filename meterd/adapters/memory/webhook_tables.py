"""The tables of notifications and webhooks, in memory, and what a flush does to them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import attrs

from meterd.core.notification import Notification
from meterd.ports.webhooks import Delivery, WebhookEndpoint


@attrs.frozen(kw_only=True)
class Told:
    """A row of `notifications`; unlike the core's, it may be a test."""

    organization_id: str
    at_ms: int
    kind: str
    data_json: str


@attrs.define
class WebhookTables:
    """Notifications, endpoints and deliveries by id."""

    notifications: dict[str, Told] = attrs.Factory(dict)
    endpoints: dict[str, WebhookEndpoint] = attrs.Factory(dict)
    deliveries: dict[str, Delivery] = attrs.Factory(dict)

    def keep(self, organization_id: str, notifications: Iterable[Notification]) -> None:
        """Keep notifications, each once, with a delivery for each endpoint that wants it."""
        for each in notifications:
            if each.id in self.notifications:
                continue
            kind = each.kind.value
            self.notifications[each.id] = Told(
                organization_id=organization_id,
                at_ms=each.at_ms,
                kind=kind,
                data_json=each.data_json,
            )
            for endpoint in self.endpoints.values():
                wants = not endpoint.kinds or kind in endpoint.kinds
                is_mine = endpoint.organization_id == organization_id
                if is_mine and wants and endpoint.disabled_at_ms is None:
                    self.add(endpoint.id, each.id, kind, each.at_ms)

    def add(self, endpoint_id: str, notification_id: str, kind: str, at_ms: int) -> Delivery:
        """Keep a delivery that is due at once."""
        digest = hashlib.md5(f"{endpoint_id} {notification_id}".encode(), usedforsecurity=False)
        delivery = Delivery(
            id=f"dlv_{digest.hexdigest()}",
            endpoint_id=endpoint_id,
            notification_id=notification_id,
            kind=kind,
            created_at_ms=at_ms,
            next_attempt_at_ms=at_ms,
        )
        return self.deliveries.setdefault(delivery.id, delivery)
