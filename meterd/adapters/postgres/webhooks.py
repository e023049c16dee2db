"""Endpoints of outgoing webhooks and their deliveries in PostgreSQL (`WebhookStore`).

Deliveries are made by the statement that writes notifications (queries/flush.sql). Only the owner
of the database runs the publisher, so what is due needs no lock of its own; a delivery sent twice
because of a takeover has the same id both times.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs

from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.adapters.sealing import Sealer
from meterd.core.ids import fact_id
from meterd.core.units import INSTANT_MS_MAX, from_datetime, to_datetime
from meterd.ports.webhooks import (
    ENDPOINTS_MAX,
    TEST_KIND,
    Asked,
    Delivery,
    DueDelivery,
    EndpointChange,
    WebhookEndpoint,
)


@attrs.define(eq=False)
class PostgresWebhooks:
    """`WebhookStore` on `webhook_endpoints`, `webhook_deliveries` and `notifications`.

    Signing secrets are stored sealed.
    Errors: every method StoreUnavailableError, StoreRejectedError. Source: queries/webhooks.sql.
    """

    pools: PostgresPools
    sealer: Sealer

    async def add_endpoint(self, endpoint: WebhookEndpoint) -> WebhookEndpoint | None:
        """Keep a new endpoint; None when the organization has as many as it may."""
        found = await self._write_of(
            endpoint.organization_id,
            "add_endpoint",
            endpoint.id,
            endpoint.organization_id,
            endpoint.url,
            list(endpoint.kinds),
            endpoint.description,
            self.sealer.seal(endpoint.secret, endpoint.id),
            to_datetime(endpoint.created_at_ms),
            endpoint.created_by,
            ENDPOINTS_MAX,
            fact_id("aud", 0, "webhook_endpoint.create", endpoint.id),  # once, whoever comes again
        )
        return self._endpoint(found[0]) if found else None

    async def endpoints(self, organization_id: str) -> Sequence[WebhookEndpoint]:
        """Return an organization's endpoints, oldest first."""

        async def work(connection: Connection) -> list[Any]:
            text = statements("webhooks")["endpoints"]
            return list(await connection.fetch(text, organization_id))

        found = await self.pools.read_of(organization_id, "read webhooks", work)
        return [self._endpoint(each) for each in found]

    async def change_endpoint(
        self, organization_id: str, endpoint_id: str, change: EndpointChange, asked: Asked
    ) -> WebhookEndpoint | None:
        """Change an endpoint and return it; None when the organization has no such one."""
        found = await self._write_of(
            organization_id,
            "change_endpoint",
            organization_id,
            endpoint_id,
            change.url,
            None if change.kinds is None else list(change.kinds),
            change.description,
            change.is_disabled,
            to_datetime(asked.at_ms),
            asked.audit_id,
            asked.actor,
        )
        return self._endpoint(found[0]) if found else None

    async def remove_endpoint(self, organization_id: str, endpoint_id: str, asked: Asked) -> bool:
        """Forget an endpoint and its deliveries; False when there is none."""
        found = await self._write_of(
            organization_id,
            "remove_endpoint",
            organization_id,
            endpoint_id,
            to_datetime(asked.at_ms),
            asked.audit_id,
            asked.actor,
        )
        return bool(found)

    async def deliveries(
        self, endpoint_id: str, *, state: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[Delivery]:
        """Return an endpoint's deliveries, newest first."""
        created_at_ms, delivery_id = after or (INSTANT_MS_MAX, "")
        created_at = to_datetime(created_at_ms)
        found = await self._read("deliveries", endpoint_id, state, created_at, delivery_id, limit)
        return [_delivery(each) for each in found]

    async def add_test(
        self, endpoint: WebhookEndpoint, notification_id: str, *, at_ms: int
    ) -> Delivery:
        """Keep a test notification for one endpoint only."""
        key, at = endpoint.organization_id, to_datetime(at_ms)
        [found] = await self._write_of(
            key, "add_test", notification_id, key, at, TEST_KIND, endpoint.id
        )
        return _delivery(found)

    async def resend(self, endpoint_id: str, delivery_id: str, *, at_ms: int) -> Delivery | None:
        """Make a delivery due again, with all its attempts; None when there is no such one."""
        found = await self._write("resend", endpoint_id, delivery_id, to_datetime(at_ms))
        return _delivery(found[0]) if found else None

    async def due_deliveries(
        self, *, now_ms: int, busy: Collection[str], limit: int
    ) -> Sequence[DueDelivery]:
        """Return what is due, the oldest of each endpoint; `busy` endpoints are left out."""
        found = await self._read("due", to_datetime(now_ms), list(busy), limit)
        return [
            DueDelivery(
                delivery=_delivery(each),
                endpoint=self._endpoint(
                    {
                        **each,
                        "id": each["endpoint_id"],
                        "created_at": each["endpoint_created_at"],
                    }
                ),
                at_ms=from_datetime(each["at"]),
                data_json=each["data"],
            )
            for each in found
        ]

    async def settle_delivery(self, delivery: Delivery, *, disable: str | None = None) -> None:
        """Write what became of an attempt, unless its endpoint is gone meanwhile."""
        attempted_at = _optional_instant(delivery.attempted_at_ms)
        arguments = (
            delivery.id,
            delivery.state,
            delivery.attempts,
            to_datetime(delivery.next_attempt_at_ms),
            attempted_at,
            delivery.status,
            delivery.error,
            delivery.duration_ms,
        )

        async def work(connection: Connection) -> None:
            texts = statements("webhooks")
            async with connection.transaction():
                await connection.execute(texts["settle"], *arguments)
                if disable is not None:
                    endpoint_id = delivery.endpoint_id
                    await connection.execute(texts["disable"], endpoint_id, attempted_at, disable)

        await self.pools.write("settle a webhook delivery", work)

    async def forget_notifications(self, *, before_ms: int) -> int:
        """Drop old notifications nobody waits for, and their deliveries; return how many."""

        async def work(connection: Connection) -> int:
            text = statements("webhooks")["forget"]
            done = await connection.execute(text, to_datetime(before_ms))
            return int(done.rpartition(" ")[2])

        return await self.pools.write("forget notifications", work)

    async def _write_of(self, organization_id: str, name: str, *arguments: object) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            return list(await connection.fetch(statements("webhooks")[name], *arguments))

        return await self.pools.write_of(organization_id, "change webhooks", work)

    def _endpoint(self, record: Mapping[str, Any]) -> WebhookEndpoint:
        return WebhookEndpoint(
            id=record["id"],
            organization_id=record["organization_id"],
            url=record["url"],
            kinds=tuple(record["kinds"]),
            description=record["description"],
            secret=self.sealer.open(record["secret"], record["id"]) or "",
            created_at_ms=from_datetime(record["created_at"]),
            created_by=record["created_by"],
            disabled_at_ms=_optional_ms(record["disabled_at"]),
            disabled_reason=record["disabled_reason"],
        )

    async def _write(self, name: str, *arguments: object) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            return list(await connection.fetch(statements("webhooks")[name], *arguments))

        return await self.pools.write("change webhooks", work)

    async def _read(self, name: str, *arguments: object) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            return list(await connection.fetch(statements("webhooks")[name], *arguments))

        return await self.pools.read("read webhooks", work)


def _delivery(record: Mapping[str, Any]) -> Delivery:
    return Delivery(
        id=record["id"],
        endpoint_id=record["endpoint_id"],
        notification_id=record["notification_id"],
        kind=record["kind"],
        state=record["state"],
        attempts=record["attempts"],
        created_at_ms=from_datetime(record["created_at"]),
        next_attempt_at_ms=from_datetime(record["next_attempt_at"]),
        attempted_at_ms=_optional_ms(record["attempted_at"]),
        status=record["status"],
        error=record["error"],
        duration_ms=record["duration_ms"],
    )


def _optional_instant(instant_ms: int | None) -> datetime | None:
    return None if instant_ms is None else to_datetime(instant_ms)


def _optional_ms(instant: datetime | None) -> int | None:
    return None if instant is None else from_datetime(instant)
