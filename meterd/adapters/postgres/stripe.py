"""The inbox of Stripe's events, and its objects as last seen (`StripeStore`).

Rule 1: an event is kept by whoever receives it; only the owner of the database works it off.
Rule 2: objects are kept as Stripe's own JSON and read back by the same functions that read them
from Stripe, so a new field needs no migration and an old row no repair.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

import attrs

from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.stripe_objects import StripeEvent, read_invoice, read_subscription
from meterd.core.units import INSTANT_MS_MAX, from_datetime, to_datetime
from meterd.errors import OwnershipLostError
from meterd.ports.stripe import (
    InboxEntry,
    InboxFigures,
    PendingEvent,
    Seen,
    SeenInvoice,
    SeenSubscription,
    Settlement,
)


@attrs.define(eq=False)
class PostgresStripe:
    """`StripeStore` on `stripe_events`, `stripe_subscriptions` and `stripe_invoices`.

    Errors: every method StoreUnavailableError, StoreRejectedError; those that write, events aside,
    OwnershipLostError. Source: queries/stripe.sql.
    """

    pools: PostgresPools
    epoch: int

    async def keep_event(self, event: StripeEvent, *, at_ms: int) -> bool:
        """Keep a verified event for ever; False when its id is known already."""
        arguments = (
            event.id,
            event.type,
            event.livemode,
            to_datetime(event.created_at_ms),
            event.subscription_id,
            event.customer_id,
            event.invoice_id,
            event.payload_json,
            to_datetime(at_ms),
        )

        async def work(connection: Connection) -> bool:
            text = statements("stripe")["keep_event"]
            return await connection.fetchval(text, *arguments) is not None

        return await self.pools.write("keep a Stripe event", work)

    async def due_events(
        self, *, now_ms: int, busy: Collection[str], subjects_max: int
    ) -> Sequence[PendingEvent]:
        """Return all pending events of subjects of which one is due, oldest first."""

        async def work(connection: Connection) -> list[Any]:
            text = statements("stripe")["due_events"]
            return list(await connection.fetch(text, to_datetime(now_ms), list(busy), subjects_max))

        return [_pending(record) for record in await self.pools.read("find Stripe events", work)]

    async def settle(self, settlement: Settlement) -> None:
        """Write what was seen and mark events done, in one transaction."""
        at = to_datetime(settlement.at_ms)
        key = settlement.organization_id
        subscriptions = _columns(_subscription_row(key, s, at) for s in settlement.subscriptions)
        invoices = _columns(_invoice_row(key, i, at) for i in settlement.invoices)

        async def work(connection: Connection) -> bool:
            texts = statements("stripe")
            async with connection.transaction():
                if await connection.fetchval(texts["owner"], self.epoch) is None:
                    return False
                if subscriptions:
                    await connection.execute(texts["put_subscriptions"], *subscriptions)
                if invoices:
                    await connection.execute(texts["put_invoices"], *invoices)
                done = settlement.done
                await connection.execute(texts["done"], list(done), list(done.values()), at)
            return True

        if not await self.pools.write("settle Stripe events", work):
            raise OwnershipLostError(f"epoch {self.epoch} no longer owns the database")

    async def postpone(
        self, event_ids: Collection[str], *, error: str, next_attempt_at_ms: int
    ) -> None:
        """Count a failed attempt of pending events and try them again later."""
        await self._execute("postpone", list(event_ids), error, to_datetime(next_attempt_at_ms))

    async def give_up(self, event_ids: Collection[str], *, error: str) -> None:
        """Count a failed attempt and let the events be dead."""
        await self._execute("give_up", list(event_ids), error)

    async def retry_event(self, event_id: str, *, at_ms: int) -> bool:
        """Make an event pending again; False when there is no such event."""

        async def work(connection: Connection) -> bool:
            text = statements("stripe")["retry"]
            return await connection.fetchval(text, event_id, to_datetime(at_ms)) is not None

        return await self.pools.write("retry a Stripe event", work)

    async def retry_unknown(self, customer_id: str, *, at_ms: int) -> int:
        """Make a customer's events pending again that were done as UNKNOWN_CUSTOMER; how many."""

        async def work(connection: Connection) -> int:
            text = statements("stripe")["retry_unknown"]
            return len(await connection.fetch(text, customer_id, to_datetime(at_ms)))

        return await self.pools.write("retry a customer's Stripe events", work)

    async def inbox(
        self, *, state: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[InboxEntry]:
        """Return at most `limit` events, newest received first; `after` is the last one seen."""
        received_at_ms, event_id = after or (INSTANT_MS_MAX, "")

        async def work(connection: Connection) -> list[Any]:
            text = statements("stripe")["inbox"]
            received_at = to_datetime(received_at_ms)
            return list(await connection.fetch(text, state, received_at, event_id, limit))

        return [_entry(record) for record in await self.pools.read("list Stripe events", work)]

    async def inbox_figures(self) -> InboxFigures:
        """Return how many events wait and are dead."""

        async def work(connection: Connection) -> Any:
            return await connection.fetchrow(statements("stripe")["inbox_figures"])

        found = await self.pools.read("count Stripe events", work)
        oldest, following = found["oldest"], found["next_attempt"]
        return InboxFigures(
            waiting=found["waiting"],
            oldest_at_ms=None if oldest is None else from_datetime(oldest),
            retried=found["retried"],
            next_attempt_at_ms=None if following is None else from_datetime(following),
            dead=found["dead"],
        )

    async def organization_of(
        self, customer_id: str | None, organization_id: str | None
    ) -> str | None:
        """Return the organization with this customer, else the named one if it exists."""

        async def work(connection: Connection) -> str | None:
            text = statements("stripe")["organization_of"]
            found: str | None = await connection.fetchval(text, customer_id, organization_id)
            return found

        return await self.pools.read("find a customer's organization", work)

    async def unsettled_invoices(self, subscription_id: str) -> Sequence[str]:
        """Return the ids of its invoices that were drafts or open when last seen."""

        async def work(connection: Connection) -> list[str]:
            text = statements("stripe")["unsettled_invoices"]
            return [record["id"] for record in await connection.fetch(text, subscription_id)]

        return await self.pools.read("find unsettled invoices", work)

    async def seen(self, organization_id: str, *, subscription_id: str | None = None) -> Seen:
        """Return what was last seen of an organization."""

        async def work(connection: Connection) -> tuple[list[Any], list[Any]]:
            texts = statements("stripe")
            return (
                list(await connection.fetch(texts["seen_subscriptions"], organization_id)),
                list(
                    await connection.fetch(texts["seen_invoices"], organization_id, subscription_id)
                ),
            )

        subscriptions, invoices = await self.pools.read("read Stripe objects", work)
        return Seen(
            subscriptions={s.subscription.id: s for s in map(_seen_subscription, subscriptions)},
            invoices={i.invoice.id: i for i in map(_seen_invoice, invoices)},
        )

    async def _execute(self, name: str, *arguments: Any) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(statements("stripe")[name], *arguments)

        await self.pools.write(f"{name.replace('_', ' ')} Stripe events", work)


def _columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _subscription_row(
    organization_id: str | None, seen: SeenSubscription, at: datetime
) -> tuple[Any, ...]:
    assert organization_id is not None, seen.subscription.id
    found = seen.subscription
    status = found.status
    return (
        found.id,
        organization_id,
        found.customer_id,
        status.value,
        status.is_over,
        seen.version,
        seen.object_json,
        at,
    )


def _invoice_row(organization_id: str | None, seen: SeenInvoice, at: datetime) -> tuple[Any, ...]:
    assert organization_id is not None, seen.invoice.id
    found = seen.invoice
    assert found.subscription_id is not None, found.id
    return (
        found.id,
        organization_id,
        found.subscription_id,
        found.customer_id,
        found.status,
        found.billing_reason,
        found.attempt_count,
        to_datetime(found.created_at_ms),
        None if found.failed_at_ms is None else to_datetime(found.failed_at_ms),
        seen.version,
        seen.object_json,
        at,
    )


def _seen_subscription(record: Any) -> SeenSubscription:
    found = read_subscription(json.loads(record["object"]))
    assert found is not None, "only subscriptions are stored"
    return SeenSubscription(
        subscription=found, version=record["version"], object_json=record["object"]
    )


def _seen_invoice(record: Any) -> SeenInvoice:
    found = read_invoice(json.loads(record["object"]))
    assert found is not None, "only invoices are stored"
    failed_at = record["first_failed_at"]
    failed_at_ms = None if failed_at is None else from_datetime(failed_at)
    return SeenInvoice(
        invoice=attrs.evolve(found, failed_at_ms=failed_at_ms),
        version=record["version"],
        object_json=record["object"],
    )


def _pending(record: Any) -> PendingEvent:
    return PendingEvent(
        event=StripeEvent(
            id=record["id"],
            type=record["type"],
            livemode=record["livemode"],
            created_at_ms=from_datetime(record["created_at"]),
            subscription_id=record["subscription_id"],
            customer_id=record["customer_id"],
            invoice_id=record["invoice_id"],
            payload_json=record["payload"],
        ),
        attempts=record["attempts"],
        received_at_ms=from_datetime(record["received_at"]),
    )


def _entry(record: Any) -> InboxEntry:
    return InboxEntry(
        id=record["id"],
        type=record["type"],
        state=record["state"],
        outcome=record["outcome"],
        livemode=record["livemode"],
        subscription_id=record["subscription_id"],
        customer_id=record["customer_id"],
        invoice_id=record["invoice_id"],
        created_at_ms=from_datetime(record["created_at"]),
        received_at_ms=from_datetime(record["received_at"]),
        attempts=record["attempts"],
        next_attempt_at_ms=from_datetime(record["next_attempt_at"]),
        last_error=record["last_error"],
    )
