"""The twin in memory of the inbox and of Stripe's objects as last seen (`StripeStore`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import attrs
import trio

from meterd.core.stripe_objects import StripeEvent
from meterd.errors import OwnershipLostError
from meterd.ports.stripe import (
    UNKNOWN_CUSTOMER,
    InboxEntry,
    InboxFigures,
    PendingEvent,
    Seen,
    SeenInvoice,
    SeenSubscription,
    Settlement,
)


@attrs.define(kw_only=True)
class Kept:
    """One row of the inbox."""

    event: StripeEvent
    received_at_ms: int
    next_attempt_at_ms: int
    state: str = "pending"
    outcome: str | None = None
    attempts: int = 0
    last_error: str | None = None

    @property
    def subject(self) -> str:
        """Return what the event is worked off with."""
        return self.event.subscription_id or self.event.id


@attrs.define(eq=False)
class MemoryStripe:
    """`StripeStore` in dictionaries. Every method is a checkpoint."""

    organization_with: Callable[[str | None, str | None], str | None]
    """Finds an organization by customer, else by its own id."""
    is_owned: Callable[[], bool] = lambda: True
    events: dict[str, Kept] = attrs.Factory(dict)
    subscriptions: dict[str, tuple[str, SeenSubscription]] = attrs.Factory(dict)
    """By id: the organization and what was seen."""
    invoices: dict[str, tuple[str, SeenInvoice]] = attrs.Factory(dict)

    async def keep_event(self, event: StripeEvent, *, at_ms: int) -> bool:
        """Keep a verified event for ever; False when its id is known already."""
        await trio.lowlevel.checkpoint()
        if event.id in self.events:
            return False
        self.events[event.id] = Kept(event=event, received_at_ms=at_ms, next_attempt_at_ms=at_ms)
        return True

    async def due_events(
        self, *, now_ms: int, busy: Collection[str], subjects_max: int
    ) -> Sequence[PendingEvent]:
        """Return all pending events of subjects of which one is due, oldest first."""
        await trio.lowlevel.checkpoint()
        pending = [kept for kept in self.events.values() if kept.state == "pending"]
        due: dict[str, int] = {}
        for kept in pending:
            if kept.next_attempt_at_ms <= now_ms and kept.subject not in busy:
                since_ms = due.get(kept.subject, kept.next_attempt_at_ms)
                due[kept.subject] = min(since_ms, kept.next_attempt_at_ms)
        chosen = sorted(due, key=lambda subject: (due[subject], subject))[:subjects_max]
        found = [kept for kept in pending if kept.subject in chosen]
        found.sort(key=lambda kept: (kept.event.created_at_ms, kept.event.id))
        return [
            PendingEvent(
                event=kept.event, attempts=kept.attempts, received_at_ms=kept.received_at_ms
            )
            for kept in found
        ]

    async def settle(self, settlement: Settlement) -> None:
        """Write what was seen and mark events done. Errors: OwnershipLostError."""
        await trio.lowlevel.checkpoint()
        if not self.is_owned():
            raise OwnershipLostError("another process owns the database")
        key = settlement.organization_id
        for subscription in settlement.subscriptions:
            assert key is not None, subscription
            self.subscriptions[subscription.subscription.id] = (key, subscription)
        for invoice in settlement.invoices:
            assert key is not None, invoice
            self.invoices[invoice.invoice.id] = (key, self._with_first_failure(invoice))
        for event_id, outcome in settlement.done.items():
            kept = self.events[event_id]
            if kept.state == "pending":
                kept.state, kept.outcome, kept.last_error = "done", outcome, None
                kept.attempts += 1

    def _with_first_failure(self, seen: SeenInvoice) -> SeenInvoice:
        known = self.invoices.get(seen.invoice.id)
        instants = [seen.invoice.failed_at_ms]
        if known is not None:
            instants.append(known[1].invoice.failed_at_ms)
        first_ms = min((at_ms for at_ms in instants if at_ms is not None), default=None)
        return attrs.evolve(seen, invoice=attrs.evolve(seen.invoice, failed_at_ms=first_ms))

    async def postpone(
        self, event_ids: Collection[str], *, error: str, next_attempt_at_ms: int
    ) -> None:
        """Count a failed attempt of pending events and try them again later."""
        await trio.lowlevel.checkpoint()
        for kept in self._pending(event_ids):
            kept.attempts += 1
            kept.last_error, kept.next_attempt_at_ms = error, next_attempt_at_ms

    async def give_up(self, event_ids: Collection[str], *, error: str) -> None:
        """Count a failed attempt and let the events be dead."""
        await trio.lowlevel.checkpoint()
        for kept in self._pending(event_ids):
            kept.attempts += 1
            kept.state, kept.last_error = "dead", error

    def _pending(self, event_ids: Collection[str]) -> list[Kept]:
        known = [self.events[event_id] for event_id in event_ids if event_id in self.events]
        return [kept for kept in known if kept.state == "pending"]

    async def retry_event(self, event_id: str, *, at_ms: int) -> bool:
        """Make an event pending again; False when there is no such event."""
        await trio.lowlevel.checkpoint()
        kept = self.events.get(event_id)
        if kept is None:
            return False
        kept.state, kept.outcome, kept.attempts = "pending", None, 0
        kept.next_attempt_at_ms = at_ms
        return True

    async def retry_unknown(self, customer_id: str, *, at_ms: int) -> int:
        """Make a customer's events pending again that were done as UNKNOWN_CUSTOMER; how many."""
        await trio.lowlevel.checkpoint()
        found = [
            kept
            for kept in self.events.values()
            if kept.event.customer_id == customer_id and kept.outcome == UNKNOWN_CUSTOMER
        ]
        for kept in found:
            await self.retry_event(kept.event.id, at_ms=at_ms)
        return len(found)

    async def inbox(
        self, *, state: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[InboxEntry]:
        """Return at most `limit` events, newest received first; `after` is the last one seen."""
        await trio.lowlevel.checkpoint()
        found = sorted(self.events.values(), key=lambda kept: (kept.received_at_ms, kept.event.id))
        return [
            _entry(kept)
            for kept in reversed(found)
            if state in (None, kept.state)
            and (after is None or (kept.received_at_ms, kept.event.id) < after)
        ][:limit]

    async def inbox_figures(self) -> InboxFigures:
        """Return how many events wait and are dead."""
        await trio.lowlevel.checkpoint()
        waiting = [each for each in self.events.values() if each.state == "pending"]
        return InboxFigures(
            waiting=len(waiting),
            oldest_at_ms=min((each.received_at_ms for each in waiting), default=None),
            retried=sum(each.attempts > 0 for each in waiting),
            next_attempt_at_ms=min((each.next_attempt_at_ms for each in waiting), default=None),
            dead=sum(each.state == "dead" for each in self.events.values()),
        )

    async def organization_of(
        self, customer_id: str | None, organization_id: str | None
    ) -> str | None:
        """Return the organization with this customer, else the named one if it exists."""
        await trio.lowlevel.checkpoint()
        return self.organization_with(customer_id, organization_id)

    async def unsettled_invoices(self, subscription_id: str) -> Sequence[str]:
        """Return the ids of its invoices that were drafts or open when last seen."""
        await trio.lowlevel.checkpoint()
        return sorted(
            key
            for key, (_, seen) in self.invoices.items()
            if seen.invoice.subscription_id == subscription_id
            and seen.invoice.status in {"draft", "open"}
        )

    async def seen(self, organization_id: str, *, subscription_id: str | None = None) -> Seen:
        """Return what was last seen of an organization."""
        await trio.lowlevel.checkpoint()
        return Seen(
            subscriptions={
                key: seen for key, (owner, seen) in self.subscriptions.items()
                if owner == organization_id
            },
            invoices={
                key: seen
                for key, (owner, seen) in self.invoices.items()
                if (owner == organization_id and seen.invoice.status in {"draft", "open"})
                or (subscription_id is not None and seen.invoice.subscription_id == subscription_id)
            },
        )  # fmt: skip


def _entry(kept: Kept) -> InboxEntry:
    event = kept.event
    return InboxEntry(
        id=event.id,
        type=event.type,
        state=kept.state,
        outcome=kept.outcome,
        livemode=event.livemode,
        subscription_id=event.subscription_id,
        customer_id=event.customer_id,
        invoice_id=event.invoice_id,
        created_at_ms=event.created_at_ms,
        received_at_ms=kept.received_at_ms,
        attempts=kept.attempts,
        next_attempt_at_ms=kept.next_attempt_at_ms,
        last_error=kept.last_error,
    )
