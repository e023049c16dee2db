"""Following: what the events of one subscription lead to, in Stripe and then here.

Rule 1: an event is a signal. What it is about is read again through the API, all events of one
        subscription with one reading; only without an API key are payloads applied, the newest
        version of an object winning whatever order they come in.
Rule 2: an event is done when what it led to is durable, in one transaction with the objects seen.
        After a crash in between it is worked off again, and changes nothing.
Rule 3: one organization's subscriptions are followed one after another.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import trio

from meterd.actors.organizations import Organizations
from meterd.actors.stripe_news import News, from_payloads
from meterd.core.commands import FollowSubscription
from meterd.core.ids import ORGANIZATION_ID
from meterd.core.stripe_objects import StripeEvent
from meterd.core.subscription import Invoice, Subscription
from meterd.core.units import SECOND_MS
from meterd.errors import (
    CustomerTakenError,
    MeterdError,
    OrganizationUnknownError,
    PaymentsUnavailableError,
)
from meterd.ports.clock import Clock
from meterd.ports.directory import Directory
from meterd.ports.payments import Payments
from meterd.ports.stripe import UNKNOWN_CUSTOMER, PendingEvent, Seen, Settlement, StripeStore


RECONCILED = "meterd.reconciliation"
"""Type of the events that meterd's own reconciliation puts into the inbox."""

LINKED = "meterd.customer_linked"
"""Type of the events with which an operator's link makes meterd look for subscriptions."""

OF_DISCOUNTS = frozenset(
    {"customer.discount.created", "customer.discount.deleted", "customer.discount.updated"}
)
"""Types of events about what a subscription brings; a customer's concerns all of its own."""

SIGNALS = frozenset(
    {
        RECONCILED,
        "checkout.session.completed",
        *OF_DISCOUNTS,
        "customer.subscription.created",
        "customer.subscription.deleted",
        "customer.subscription.paused",
        "customer.subscription.pending_update_applied",
        "customer.subscription.pending_update_expired",
        "customer.subscription.resumed",
        "customer.subscription.trial_will_end",
        "customer.subscription.updated",
        "invoice.created",
        "invoice.finalized",
        "invoice.marked_uncollectible",
        "invoice.paid",
        "invoice.payment_action_required",
        "invoice.payment_failed",
        "invoice.payment_succeeded",
        "invoice.updated",
        "invoice.voided",
    }
)
"""Types of events after which a subscription is looked at; others are counted and done."""


def own_event(
    event_id: str,
    kind: str,
    *,
    livemode: bool,
    now_ms: int,
    subscription_id: str | None = None,
    customer_id: str | None = None,
) -> StripeEvent:
    """Return an event of meterd's own for the inbox: it says what to look at, and nothing else."""
    payload = {"id": event_id, "object": "event", "type": kind, "data": {"object": {}}}
    return StripeEvent(
        id=event_id,
        type=kind,
        livemode=livemode,
        created_at_ms=now_ms - now_ms % SECOND_MS,
        subscription_id=subscription_id,
        customer_id=customer_id,
        invoice_id=None,
        payload_json=json.dumps(payload),
    )


class NotThereYetError(MeterdError):
    """Stripe does not know an object that an event is about, or not yet."""


class Follower:
    """Lets organizations follow their subscriptions."""

    def __init__(
        self,
        store: StripeStore,
        payments: Payments | None,
        organizations: Organizations,
        directory: Directory,
        *,
        clock: Clock,
        on_reading: Callable[[bool], None],
        on_invoices: Callable[[str, Sequence[Invoice]], None] | None,
    ) -> None:
        """`on_reading(is_there)` hears whether Stripe has answered; both are synchronous."""
        self._store = store
        self._payments = payments
        self._organizations = organizations
        self._directory = directory
        self._clock = clock
        self._on_reading = on_reading
        self._on_invoices = on_invoices
        self._turns: dict[str, trio.Lock] = {}
        self.outcomes: Counter[str] = Counter()
        """What became of events since the start: applied, unknown_type, …"""

    async def settle(self, events: Sequence[PendingEvent]) -> None:
        """Do what the events of one subject ask for and mark them done.

        Errors: NotThereYetError, PaymentsUnavailableError, PaymentsRejectedError,
        StoreUnavailableError, StoreRejectedError, OwnershipLostError; as `Organizations.ask`.
        """
        if events[0].event.type == LINKED and self._payments is not None:
            await self._discover(self._payments, events[0].event)
            return
        if self._is_of_customer(events[0]) and self._payments is not None:
            await self._discover_known(self._payments, events[0].event)
            return
        done = {pending.event.id: self._refusal(pending) for pending in events}
        signals = [pending for pending in events if done[pending.event.id] is None]
        if not signals:
            await self._finish(Settlement(done=_told(done), at_ms=self._clock.now_ms()))
            return
        subscription_id = signals[0].event.subscription_id
        assert subscription_id is not None, signals
        news = await self._look(subscription_id, signals)
        organization_id = await self._owner(news, signals)
        if organization_id is None:
            told = _told(done, otherwise=UNKNOWN_CUSTOMER)
            await self._finish(Settlement(done=told, at_ms=self._clock.now_ms()))
            return
        async with self._turn(organization_id):
            await self._follow(organization_id, subscription_id, news, done, signals)

    def _is_of_customer(self, pending: PendingEvent) -> bool:
        """Tell whether an event is about a discount of a customer, and not refused."""
        event = pending.event
        return (
            event.type in OF_DISCOUNTS
            and event.subscription_id is None
            and event.customer_id is not None
            and self._refusal(pending) in {None, "no_subscription"}
        )

    async def _discover_known(self, payments: Payments, event: StripeEvent) -> None:
        """Look at the subscriptions of a customer, if it is one of ours."""
        if await self._store.organization_of(event.customer_id, None) is None:
            told = {event.id: UNKNOWN_CUSTOMER}
            await self._finish(Settlement(done=told, at_ms=self._clock.now_ms()))
            return
        await self._discover(payments, event)

    async def _discover(self, payments: Payments, event: StripeEvent) -> None:
        """Put a signal into the inbox for each subscription that a customer has.

        Done twice it puts the same ones.
        """
        assert event.customer_id is not None, event
        try:
            found = await payments.subscriptions_of(event.customer_id)
        except PaymentsUnavailableError:
            self._on_reading(False)
            raise
        self._on_reading(True)
        now_ms = self._clock.now_ms()
        for subscription_id in found:
            signal = own_event(
                f"{event.id}_{subscription_id}",
                RECONCILED,
                livemode=payments.livemode,
                now_ms=now_ms,
                subscription_id=subscription_id,
            )
            await self._store.keep_event(signal, at_ms=now_ms)
        await self._finish(Settlement(done={event.id: "applied"}, at_ms=now_ms))

    def _refusal(self, pending: PendingEvent) -> str | None:
        """Return why nothing follows from an event, or None when something may."""
        event = pending.event
        if self._payments is not None and event.livemode != self._payments.livemode:
            return "wrong_livemode"
        if event.is_of_connected_account:
            return "other_account"
        if event.type not in SIGNALS:
            return "unknown_type"
        return None if event.subscription_id is not None else "no_subscription"

    async def _look(self, subscription_id: str, signals: Sequence[PendingEvent]) -> News:
        """Return the objects to act on: as Stripe has them now, else as the payloads say."""
        if self._payments is None:
            return from_payloads(signals)
        named = {pending.event.invoice_id for pending in signals} - {None}
        unsettled = await self._store.unsettled_invoices(subscription_id)
        # Before the reading: whatever happens during it is news for the next one.
        version = f"{self._clock.now_ms():015d}"
        try:
            found = await self._payments.subscription(
                subscription_id, invoice_ids={*unsettled, *(each for each in named if each)}
            )
        except PaymentsUnavailableError:
            self._on_reading(False)
            raise
        self._on_reading(True)
        if found is None:
            raise NotThereYetError(f"Stripe has no subscription {subscription_id}")
        news = News(is_read=True)
        news.add_subscription(found.subscription, version)
        for invoice in found.invoices:
            news.add_invoice(invoice, version)
        news.add_failures(signals)
        return news

    async def _owner(self, news: News, signals: Sequence[PendingEvent]) -> str | None:
        """Return whose subscription it is: the customer's organization, else the one it names."""
        customer_id = next((p.event.customer_id for p in signals if p.event.customer_id), None)
        named: str | None = None
        for invoice in news.invoices.values():
            named = invoice.invoice.organization_id or named
        for seen in news.subscriptions.values():
            customer_id, named = seen.subscription.customer_id, seen.subscription.organization_id
        if named is not None and not ORGANIZATION_ID.fullmatch(named):
            named = None
        return await self._store.organization_of(customer_id, named)

    async def _follow(
        self,
        organization_id: str,
        subscription_id: str,
        news: News,
        done: Mapping[str, str | None],
        signals: Sequence[PendingEvent],
    ) -> None:
        """Let an organization follow what is newer than what was seen, and remember it."""
        seen = await self._store.seen(organization_id, subscription_id=subscription_id)
        fresh = news.newer_than(seen)
        told = _told(done, otherwise="applied")
        try:
            customer_id = await self._link(organization_id, fresh)
            command = _command(seen, fresh, customer_id=customer_id, reason=_reason(signals))
            answer = await self._organizations.ask(organization_id, command)
            await self._organizations.durable(organization_id, answer.seq)
        except OrganizationUnknownError:
            told = _told(done, otherwise=UNKNOWN_CUSTOMER)
            await self._finish(Settlement(done=told, at_ms=self._clock.now_ms()))
            return
        await self._finish(
            Settlement(
                organization_id=organization_id,
                subscriptions=tuple(fresh.subscriptions.values()),
                invoices=tuple(fresh.invoices.values()),
                done=told,
                at_ms=self._clock.now_ms(),
            )
        )
        if self._on_invoices is not None and fresh.invoices:
            invoices = tuple(each.invoice for each in fresh.invoices.values())
            self._on_invoices(organization_id, invoices)

    async def _link(self, organization_id: str, fresh: News) -> str | None:
        """Claim the customer for an organization without one, before its actor hears of it.

        Only a claimed one may reach the actor: what the store would refuse must not be a fact.
        """
        known = await self._organizations.snapshot(organization_id)
        customers = {each.subscription.customer_id for each in fresh.subscriptions.values()}
        if known.profile.stripe_customer_id is not None or not customers:
            return None
        customer_id = min(customers)
        try:
            await self._directory.claim_customer(organization_id, customer_id)
        except CustomerTakenError:
            return None
        return customer_id

    async def _finish(self, settlement: Settlement) -> None:
        await self._store.settle(settlement)
        self.outcomes.update(settlement.done.values())

    @contextlib.asynccontextmanager
    async def _turn(self, organization_id: str) -> AsyncIterator[None]:
        """Wait for one's turn: what was seen of an organization changes under one hand."""
        lock = self._turns.setdefault(organization_id, trio.Lock())
        async with lock:
            try:
                yield
            finally:
                if not lock.statistics().tasks_waiting:
                    del self._turns[organization_id]


def _command(
    seen: Seen, fresh: News, *, customer_id: str | None, reason: str
) -> FollowSubscription:
    """Return what an organization has to know; what ended long ago is not news."""
    subscriptions: dict[str, Subscription] = {}
    for key, known in seen.subscriptions.items():
        if not known.subscription.status.is_over:
            subscriptions[key] = known.subscription
    for key, each in fresh.subscriptions.items():
        before = seen.subscriptions.get(key)
        if before is None or not before.subscription.status.is_over:
            subscriptions[key] = each.subscription
    invoices = {key: each.invoice for key, each in seen.invoices.items()}
    invoices.update((key, each.invoice) for key, each in fresh.invoices.items())
    return FollowSubscription(
        subscriptions=tuple(subscriptions[key] for key in sorted(subscriptions)),
        invoices=tuple(invoices[key] for key in sorted(invoices)),
        customer_id=customer_id,
        reason=reason,
    )


def _reason(signals: Sequence[PendingEvent]) -> str:
    """Return the signals in words, for the audit log."""
    last = signals[-1].event
    more = f" and {len(signals) - 1} more" if len(signals) > 1 else ""
    return f"{last.type} {last.id}{more}"


def _told(done: Mapping[str, str | None], *, otherwise: str = "applied") -> dict[str, str]:
    return {event_id: outcome or otherwise for event_id, outcome in done.items()}
