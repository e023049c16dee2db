"""The twin in memory of endpoints and deliveries (`WebhookStore`)."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

import attrs
import trio

from meterd.adapters.memory.store import Database
from meterd.adapters.memory.webhook_tables import Told
from meterd.core.organization import AuditEntry
from meterd.ports.webhooks import (
    ENDPOINTS_MAX,
    PENDING,
    TEST_KIND,
    Asked,
    Delivery,
    DueDelivery,
    EndpointChange,
    WebhookEndpoint,
)


@attrs.define(eq=False)
class MemoryWebhooks:
    """`WebhookStore` beside a `Database`. Every method is a checkpoint."""

    database: Database

    async def add_endpoint(self, endpoint: WebhookEndpoint) -> WebhookEndpoint | None:
        """Keep a new endpoint; None when the organization has as many as it may."""
        known = await self.endpoints(endpoint.organization_id)
        made_before = self.database.webhooks.endpoints.get(endpoint.id)
        if made_before is not None:
            return made_before
        if len(known) >= ENDPOINTS_MAX:
            return None
        self.database.webhooks.endpoints[endpoint.id] = endpoint
        asked = Asked(
            audit_id=f"aud_{endpoint.id}", actor=endpoint.created_by, at_ms=endpoint.created_at_ms
        )
        self._audit("create", asked, None, endpoint)
        return endpoint

    def _audit(
        self,
        action: str,
        asked: Asked,
        before: WebhookEndpoint | None,
        after: WebhookEndpoint | None,
    ) -> None:
        one = after or before
        assert one is not None, "nothing changed"
        entry = AuditEntry(
            id=asked.audit_id,
            at_ms=asked.at_ms,
            actor=asked.actor,
            action=f"webhook_endpoint.{action}",
            reason="",
            before_json="{}" if before is None else _told(before),
            after_json="{}" if after is None else _told(after),
        )
        self.database.audits[entry.id] = (one.organization_id, entry)

    async def endpoints(self, organization_id: str) -> Sequence[WebhookEndpoint]:
        """Return an organization's endpoints, oldest first."""
        await trio.lowlevel.checkpoint()
        found = self.database.webhooks.endpoints.values()
        mine = [each for each in found if each.organization_id == organization_id]
        return sorted(mine, key=lambda each: (each.created_at_ms, each.id))

    async def change_endpoint(
        self, organization_id: str, endpoint_id: str, change: EndpointChange, asked: Asked
    ) -> WebhookEndpoint | None:
        """Change an endpoint and return it; None when the organization has no such one."""
        await trio.lowlevel.checkpoint()
        known = self.database.webhooks.endpoints.get(endpoint_id)
        if known is None or known.organization_id != organization_id:
            return None
        changed = attrs.evolve(
            known,
            url=known.url if change.url is None else change.url,
            kinds=known.kinds if change.kinds is None else change.kinds,
            description=known.description if change.description is None else change.description,
        )
        if change.is_disabled is True and known.disabled_at_ms is None:
            changed = attrs.evolve(changed, disabled_at_ms=asked.at_ms, disabled_reason=None)
        elif change.is_disabled is False:
            changed = attrs.evolve(changed, disabled_at_ms=None, disabled_reason=None)
        self.database.webhooks.endpoints[endpoint_id] = changed
        self._audit("change", asked, known, changed)
        return changed

    async def remove_endpoint(self, organization_id: str, endpoint_id: str, asked: Asked) -> bool:
        """Forget an endpoint and its deliveries; False when there is none."""
        await trio.lowlevel.checkpoint()
        tables = self.database.webhooks
        known = tables.endpoints.get(endpoint_id)
        if known is None or known.organization_id != organization_id:
            return False
        del tables.endpoints[endpoint_id]
        self._audit("delete", asked, known, None)
        for delivery in list(tables.deliveries.values()):
            if delivery.endpoint_id == endpoint_id:
                del tables.deliveries[delivery.id]
        return True

    async def deliveries(
        self, endpoint_id: str, *, state: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[Delivery]:
        """Return an endpoint's deliveries, newest first."""
        await trio.lowlevel.checkpoint()
        found = [
            (-each.created_at_ms, each.id, each)
            for each in self.database.webhooks.deliveries.values()
            if each.endpoint_id == endpoint_id and state in (None, each.state)
        ]
        found.sort(key=lambda entry: entry[:2])
        if after is not None:
            found = [entry for entry in found if entry[:2] > (-after[0], after[1])]
        return [each for _, _, each in found[:limit]]

    async def add_test(
        self, endpoint: WebhookEndpoint, notification_id: str, *, at_ms: int
    ) -> Delivery:
        """Keep a test notification for one endpoint only."""
        await trio.lowlevel.checkpoint()
        tables = self.database.webhooks
        tables.notifications[notification_id] = Told(
            organization_id=endpoint.organization_id, at_ms=at_ms, kind=TEST_KIND, data_json="{}"
        )
        return tables.add(endpoint.id, notification_id, TEST_KIND, at_ms)

    async def resend(self, endpoint_id: str, delivery_id: str, *, at_ms: int) -> Delivery | None:
        """Make a delivery due again, with all its attempts; None when there is no such one."""
        await trio.lowlevel.checkpoint()
        known = self.database.webhooks.deliveries.get(delivery_id)
        if known is None or known.endpoint_id != endpoint_id:
            return None
        again = attrs.evolve(known, state=PENDING, attempts=0, next_attempt_at_ms=at_ms)
        self.database.webhooks.deliveries[delivery_id] = again
        return again

    async def due_deliveries(
        self, *, now_ms: int, busy: Collection[str], limit: int
    ) -> Sequence[DueDelivery]:
        """Return what is due, the oldest of each endpoint; `busy` endpoints are left out."""
        await trio.lowlevel.checkpoint()
        tables = self.database.webhooks
        first: dict[str, DueDelivery] = {}
        for each in sorted(
            tables.deliveries.values(), key=lambda each: (each.next_attempt_at_ms, each.id)
        ):
            endpoint = tables.endpoints[each.endpoint_id]
            is_due = each.state == PENDING and each.next_attempt_at_ms <= now_ms
            if is_due and endpoint.disabled_at_ms is None and endpoint.id not in busy:
                told = tables.notifications[each.notification_id]
                due = DueDelivery(
                    delivery=each, endpoint=endpoint, at_ms=told.at_ms, data_json=told.data_json
                )
                first.setdefault(endpoint.id, due)
        return list(first.values())[:limit]

    async def settle_delivery(self, delivery: Delivery, *, disable: str | None = None) -> None:
        """Write what became of an attempt, unless its endpoint is gone meanwhile."""
        await trio.lowlevel.checkpoint()
        tables = self.database.webhooks
        if delivery.id not in tables.deliveries:
            return
        tables.deliveries[delivery.id] = delivery
        if disable is not None:
            tables.endpoints[delivery.endpoint_id] = attrs.evolve(
                tables.endpoints[delivery.endpoint_id],
                disabled_at_ms=delivery.attempted_at_ms,
                disabled_reason=disable,
            )

    async def forget_notifications(self, *, before_ms: int) -> int:
        """Drop old notifications nobody waits for, and their deliveries; return how many."""
        await trio.lowlevel.checkpoint()
        tables = self.database.webhooks
        waited = {d.notification_id for d in tables.deliveries.values() if d.state == PENDING}
        old = {
            key
            for key, told in tables.notifications.items()
            if told.at_ms < before_ms and key not in waited
        }
        for delivery in list(tables.deliveries.values()):
            if delivery.notification_id in old:
                del tables.deliveries[delivery.id]
        for key in old:
            del tables.notifications[key]
        return len(old)


def _told(endpoint: WebhookEndpoint) -> str:
    """Return what the audit log says of an endpoint: never its secret."""
    return json.dumps(
        {
            "endpoint_id": endpoint.id,
            "url": endpoint.url,
            "kinds": list(endpoint.kinds),
            "disabled": endpoint.disabled_at_ms is not None,
        }
    )
