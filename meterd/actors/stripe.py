"""The Stripe actor: works off the inbox of events and lets organizations follow.

Rule 1: an event is a signal. What it is about is read again through the API, all events of one
        subscription with one reading; only without an API key are payloads applied, the newest
        version of an object winning whatever order they come in.
Rule 2: an event is done when what it led to is durable, in one transaction with the objects seen.
        After a crash in between it is worked off again, and changes nothing.
Rule 3: one subscription is worked on once at a time, and one organization's one after another;
        nobody's trouble delays another's.
Rule 4: a failure is tried again with growing delays and full jitter. What cannot succeed is dead
        after so many attempts, what waits for somebody else after days: an operator may retry it.
Rule 5: when Stripe itself is away, one subscription at a time asks whether it is back.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

import attrs
import structlog
import trio

from meterd.actors.organizations import Organizations
from meterd.actors.supervisor import Crash, attempt_async
from meterd.core.commands import FollowSubscription
from meterd.core.ids import ORGANIZATION_ID
from meterd.core.stripe_objects import Json, read_invoice, read_subscription
from meterd.core.subscription import Invoice, Subscription
from meterd.core.supervision import backoff_ms
from meterd.core.units import DAY_MS, MINUTE_MS, SECOND_MS
from meterd.errors import (
    CustomerTakenError,
    MeterdError,
    OrganizationUnknownError,
    OwnershipLostError,
    PaymentsUnavailableError,
    PortalClosedError,
    StoreError,
    StoreUnavailableError,
)
from meterd.ports import (
    UNKNOWN_CUSTOMER,
    Clock,
    Directory,
    Payments,
    PendingEvent,
    Seen,
    SeenInvoice,
    SeenSubscription,
    Settlement,
    StripeStore,
)


log = structlog.get_logger(__name__)

RECONCILED = "meterd.reconciliation"
"""Type of the events that meterd's own reconciliation puts into the inbox."""

SIGNALS = frozenset(
    {
        RECONCILED,
        "checkout.session.completed",
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

PAYMENT_FAILED = "invoice.payment_failed"

ERROR_CHARACTERS_MAX = 500
"""So much of an error is kept with the event it befell."""

AWAY_AFTER = 3
"""Readings in a row that failed before Stripe counts as away."""

_KIND_RANKS: Mapping[str, int] = {
    "customer.subscription.created": 0,
    "customer.subscription.deleted": 9,
    "invoice.created": 0,
    "invoice.finalized": 2,
    "invoice.payment_action_required": 3,
    "invoice.payment_failed": 4,
    "invoice.voided": 8,
    "invoice.marked_uncollectible": 8,
    "invoice.payment_succeeded": 9,
    "invoice.paid": 9,
}
"""Which of two payloads of one second is the later news; others lie in between."""

_OTHER_RANK = 1


@attrs.frozen(kw_only=True)
class StripePolicy:
    """How the inbox is worked off."""

    poll_ms: int = 5_000
    """An event is found this late at most, whoever put it into the inbox."""
    at_once: int = 8
    """Subscriptions worked on at the same time."""
    attempts_max: int = 12
    """Attempts of what cannot succeed by waiting: a missing object, a refusal, a crash."""
    patience_ms: int = 7 * DAY_MS
    """How long what waits for Stripe or for the store is tried again."""
    retry_min_ms: int = SECOND_MS
    retry_max_ms: int = 5 * MINUTE_MS
    away_max_ms: int = MINUTE_MS
    """Longest pause between two questions whether Stripe is back."""


class NotThereYetError(MeterdError):
    """Stripe does not know an object that an event is about, or not yet."""


class StripeActor:
    """Follows Stripe for every organization."""

    def __init__(
        self,
        store: StripeStore,
        payments: Payments | None,
        organizations: Organizations,
        directory: Directory,
        *,
        clock: Clock,
        jitter: Iterator[float],
        policy: StripePolicy | None = None,
        on_invoices: Callable[[str, Sequence[Invoice]], None] | None = None,
    ) -> None:
        """`on_invoices(organization_id, invoices)` hears, synchronously, of invoices as settled."""
        self._store = store
        self._payments = payments
        self._organizations = organizations
        self._directory = directory
        self._clock = clock
        self._jitter = jitter
        self._policy = policy or StripePolicy()
        self._on_invoices = on_invoices
        self._kick = trio.Event()
        self._back = trio.Event()
        self._busy: set[str] = set()
        self._turns: dict[str, trio.Lock] = {}
        self._failures_in_a_row = 0
        self._lost: OwnershipLostError | None = None
        self.outcomes: Counter[str] = Counter()
        """What became of events since the start, for metrics: applied, unknown_type, …, dead."""
        self.last_error: str | None = None

    @property
    def is_reading(self) -> bool:
        """Tell whether objects are read through the API, or payloads applied as they come."""
        return self._payments is not None

    @property
    def is_away(self) -> bool:
        """Tell whether Stripe has not answered lately."""
        return self._failures_in_a_row >= AWAY_AFTER

    def kick(self) -> None:
        """Look into the inbox now; synchronous, never waits."""
        self._kick.set()

    async def retry(self, event_id: str) -> bool:
        """Work an event off again, dead or done; False when there is no such event."""
        found = await self._store.retry_event(event_id, at_ms=self._clock.now_ms())
        self.kick()
        return found

    async def customer_linked(self, customer_id: str) -> None:
        """Work off what had come for a customer before anybody here was that customer."""
        if await self._store.retry_unknown(customer_id, at_ms=self._clock.now_ms()):
            self.kick()

    # --- the actor --------------------------------------------------------------------------

    async def run(self) -> None:
        """Work the inbox off for ever. Errors: OwnershipLostError."""
        if self._payments is None:
            log.warning(
                "stripe_payloads_applied", reason="no stripe_api_key: nothing is read again"
            )
        self._busy.clear()
        async with trio.open_nursery() as nursery:
            lost = await self._start_work(nursery)
            nursery.cancel_scope.cancel()
        raise lost

    async def _start_work(self, nursery: trio.Nursery) -> OwnershipLostError:
        """Start work on what is due, for ever; return why it must stop."""
        tries = 0
        while True:
            self._kick, self._back = trio.Event(), trio.Event()
            if self._lost is not None:
                return self._lost
            try:
                groups = await self._due()
            except (StoreUnavailableError, PortalClosedError) as error:
                tries += 1
                self.last_error = str(error)
                await trio.sleep(self._delay_ms(tries) / SECOND_MS)
                continue
            tries = 0
            for subject, events in groups.items():
                self._busy.add(subject)
                nursery.start_soon(self._work_off, subject, events)
            with trio.move_on_after(self._pause_ms() / SECOND_MS):
                # New events do not shorten the pause while Stripe is away; its return does.
                await (self._back if self.is_away else self._kick).wait()

    async def _due(self) -> dict[str, list[PendingEvent]]:
        room = (1 if self.is_away else self._policy.at_once) - len(self._busy)
        if room <= 0:
            return {}
        found = await self._store.due_events(
            now_ms=self._clock.now_ms(), busy=tuple(self._busy), subjects_max=room
        )
        groups: dict[str, list[PendingEvent]] = {}
        for pending in found:
            subject = pending.event.subscription_id or pending.event.id
            groups.setdefault(subject, []).append(pending)
        return groups

    def _pause_ms(self) -> int:
        if not self.is_away:
            return self._policy.poll_ms
        tries = self._failures_in_a_row - AWAY_AFTER + 1
        return backoff_ms(tries, least_ms=SECOND_MS, most_ms=self._policy.away_max_ms)

    def _delay_ms(self, tries: int) -> float:
        """Return a delay between nothing and the back-off (full jitter)."""
        policy = self._policy
        longest_ms = backoff_ms(tries, least_ms=policy.retry_min_ms, most_ms=policy.retry_max_ms)
        return longest_ms * next(self._jitter)

    async def _work_off(self, subject: str, events: Sequence[PendingEvent]) -> None:
        """Work off the events of one subject; what fails is tried again or dead."""
        try:
            result = await attempt_async(self._settle, events)
            if isinstance(result, Crash):
                await self._fail(events, result.error)
        except OwnershipLostError as error:
            self._lost = error
            self._back.set()
            self.kick()
        except (StoreError, PortalClosedError) as error:
            self.last_error = str(error)  # they are still pending, and due: the next poll sees them
            await trio.sleep(self._delay_ms(1) / SECOND_MS)
        finally:
            self._busy.discard(subject)
        if not self.is_away:
            self.kick()  # more may have come for this subject meanwhile

    async def _fail(self, events: Sequence[PendingEvent], error: Exception) -> None:
        if isinstance(error, OwnershipLostError):
            raise error
        is_transient = isinstance(error, MeterdError) and error.transient
        text = f"{type(error).__name__}: {error}"
        self.last_error = text[:ERROR_CHARACTERS_MAX].replace("\0", "")
        now_ms, policy = self._clock.now_ms(), self._policy
        later: dict[int, list[str]] = {}
        dead = []
        for pending in events:
            is_late = now_ms >= pending.received_at_ms + policy.patience_ms
            is_out = is_late if is_transient else pending.attempts + 1 >= policy.attempts_max
            if is_out:
                dead.append(pending.event.id)
            else:
                later.setdefault(pending.attempts + 1, []).append(pending.event.id)
        log.warning(
            "stripe_events_failed",
            event_ids=[pending.event.id for pending in events],
            dead=len(dead),
            error=self.last_error,
            exc_info=None if isinstance(error, MeterdError) else error,
        )
        for tries, event_ids in later.items():
            next_attempt_at_ms = now_ms + int(self._delay_ms(tries))
            await self._store.postpone(
                event_ids, error=self.last_error, next_attempt_at_ms=next_attempt_at_ms
            )
        if dead:
            self.outcomes["dead"] += len(dead)
            await self._store.give_up(dead, error=self.last_error)

    # --- one subject ------------------------------------------------------------------------

    async def _settle(self, events: Sequence[PendingEvent]) -> None:
        """Do what the events of one subject ask for and mark them done."""
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

    async def _look(self, subscription_id: str, signals: Sequence[PendingEvent]) -> _News:
        """Return the objects to act on: as Stripe has them now, else as the payloads say."""
        if self._payments is None:
            return _from_payloads(signals)
        named = {pending.event.invoice_id for pending in signals} - {None}
        unsettled = await self._store.unsettled_invoices(subscription_id)
        # Before the reading: whatever happens during it is news for the next one.
        version = f"{self._clock.now_ms():015d}"
        try:
            found = await self._payments.subscription(
                subscription_id, invoice_ids={*unsettled, *(each for each in named if each)}
            )
        except PaymentsUnavailableError:
            self._failures_in_a_row += 1
            raise
        if self._failures_in_a_row:
            self._failures_in_a_row = 0
            self._back.set()
            self.kick()
        if found is None:
            raise NotThereYetError(f"Stripe has no subscription {subscription_id}")
        news = _News()
        news.add_subscription(found.subscription, version)
        for invoice in found.invoices:
            news.add_invoice(invoice, version)
        news.add_failures(signals)
        return news

    async def _owner(self, news: _News, signals: Sequence[PendingEvent]) -> str | None:
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
        news: _News,
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

    async def _link(self, organization_id: str, fresh: _News) -> str | None:
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


@attrs.define
class _News:
    """Objects that events lead to, the newest version of each."""

    subscriptions: dict[str, SeenSubscription] = attrs.Factory(dict)
    invoices: dict[str, SeenInvoice] = attrs.Factory(dict)
    failures_ms: dict[str, int] = attrs.Factory(dict)
    """Invoice id to the earliest payment failure told."""

    def add_subscription(self, found: Json, version: str) -> None:
        """Take a subscription unless a newer version of it is here."""
        subscription = read_subscription(found)
        if subscription is None:
            return
        known = self.subscriptions.get(subscription.id)
        if known is None or known.version <= version:
            self.subscriptions[subscription.id] = SeenSubscription(
                subscription=subscription, version=version, object_json=_json(found)
            )

    def add_invoice(self, found: Json, version: str) -> None:
        """Take an invoice of a subscription unless a newer version of it is here."""
        invoice = read_invoice(found)
        if invoice is None or invoice.subscription_id is None:
            return
        known = self.invoices.get(invoice.id)
        if known is None or known.version <= version:
            self.invoices[invoice.id] = SeenInvoice(
                invoice=invoice, version=version, object_json=_json(found)
            )

    def add_failures(self, signals: Iterable[PendingEvent]) -> None:
        """Remember when payments failed: the objects themselves do not say."""
        for pending in signals:
            event = pending.event
            if event.type == PAYMENT_FAILED and event.invoice_id is not None:
                known_ms = self.failures_ms.get(event.invoice_id, event.created_at_ms)
                self.failures_ms[event.invoice_id] = min(known_ms, event.created_at_ms)

    def newer_than(self, seen: Seen) -> _News:
        """Return what is news to somebody who has seen that; first failures stay first."""
        invoices = {}
        for invoice_id, each in self.invoices.items():
            known = seen.invoices.get(invoice_id)
            newest = each if known is None or known.version <= each.version else known
            known_ms = None if known is None else known.invoice.failed_at_ms
            told = (self.failures_ms.get(invoice_id), known_ms)
            first_ms = min((at_ms for at_ms in told if at_ms is not None), default=None)
            invoice = attrs.evolve(newest.invoice, failed_at_ms=first_ms)
            invoices[invoice_id] = attrs.evolve(newest, invoice=invoice)
        return _News(
            subscriptions={
                key: each
                for key, each in self.subscriptions.items()
                if key not in seen.subscriptions or seen.subscriptions[key].version <= each.version
            },
            invoices=invoices,
        )


def _from_payloads(signals: Sequence[PendingEvent]) -> _News:
    """Return what payloads say; of two the later wins, in whatever order they are looked at."""
    news = _News()
    for pending in signals:
        event = pending.event
        found = event.object
        rank = _KIND_RANKS.get(event.type, _OTHER_RANK)
        start_ms = 0
        subscription = read_subscription(found)
        if subscription is not None:
            start_ms = max((item.start_ms for item in subscription.items), default=0)
        version = f"{event.created_at_ms:015d}.{rank}.{start_ms:015d}.{event.id}"
        news.add_subscription(found, version)
        news.add_invoice(found, version)
    news.add_failures(signals)
    return news


def _command(
    seen: Seen, fresh: _News, *, customer_id: str | None, reason: str
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


def _json(found: Json) -> str:
    return json.dumps(found, separators=(",", ":"))
