"""The Stripe actor: works off the inbox of events and lets organizations follow.

Rule 1: one subscription is worked on once at a time; nobody's trouble delays another's.
Rule 2: a failure is tried again with growing delays and full jitter. What cannot succeed is dead
        after so many attempts, what waits for somebody else after days: an operator may retry it.
Rule 3: when Stripe itself is away, one subscription at a time asks whether it is back.
What the events of a subscription lead to is stripe_following.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import attrs
import structlog
import trio

from meterd.actors.organizations import Organizations
from meterd.actors.stripe_following import LINKED, Follower, own_event
from meterd.actors.supervisor import Crash, attempt_async
from meterd.core.subscription import Invoice
from meterd.core.supervision import backoff_ms
from meterd.core.units import DAY_MS, MINUTE_MS, SECOND_MS, rfc3339
from meterd.errors import (
    MeterdError,
    OwnershipLostError,
    PortalClosedError,
    StoreError,
    StoreUnavailableError,
)
from meterd.ports.clock import Clock
from meterd.ports.directory import Directory
from meterd.ports.payments import Payments
from meterd.ports.stripe import InboxFigures, PendingEvent, StripeStore


log = structlog.get_logger(__name__)

ERROR_CHARACTERS_MAX = 500
"""So much of an error is kept with the event it befell."""

AWAY_AFTER = 3
"""Readings in a row that failed before Stripe counts as away."""


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
        self._follower = Follower(
            store,
            payments,
            organizations,
            directory,
            clock=clock,
            on_reading=self._heard,
            on_invoices=on_invoices,
        )
        self._clock = clock
        self._jitter = jitter
        self._policy = policy or StripePolicy()
        self._kick = trio.Event()
        self._back = trio.Event()
        self._busy: set[str] = set()
        self._failures_in_a_row = 0
        self._hopeless: Counter[str] = Counter()
        """How often an event failed for what no waiting cures; outages do not count."""
        self._lost: OwnershipLostError | None = None
        self.last_error: str | None = None
        self._inbox = InboxFigures()
        self._counted_at_ms = 0

    @property
    def oldest_waiting_ms(self) -> int:
        """Return for how long the longest waiting event has waited, in milliseconds."""
        since_ms = self._inbox.oldest_at_ms
        return 0 if since_ms is None else max(0, self._clock.now_ms() - since_ms)

    @property
    def figures(self) -> dict[str, Any]:
        """Return what an operator sees; of the inbox as it was at most a poll ago."""
        next_ms = self._inbox.next_attempt_at_ms
        return {
            "away": self.is_away,
            "waiting": self._inbox.waiting,
            "oldest_waiting_ms": self.oldest_waiting_ms,
            "retried": self._inbox.retried,
            "next_attempt_at": None if next_ms is None else rfc3339(next_ms),
            "working_on": len(self._busy),
            "failures_in_a_row": self._failures_in_a_row,
            "dead": self._inbox.dead,
            "outcomes": dict(self.outcomes),
            "last_error": self.last_error,
            "trouble": self.last_error if self.is_away or self._inbox.dead else None,
        }

    @property
    def outcomes(self) -> Counter[str]:
        """What became of events since the start, for metrics: applied, unknown_type, …, dead."""
        return self._follower.outcomes

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
        """Follow a customer from now on: what had come for it before, and what it has at Stripe.

        Errors: StoreUnavailableError. Stripe is asked later, by the event that is kept here.
        """
        now_ms = self._clock.now_ms()
        await self._store.retry_unknown(customer_id, at_ms=now_ms)
        if self._payments is not None:
            event = own_event(
                f"meterd_linked_{customer_id}_{now_ms}",
                LINKED,
                livemode=self._payments.livemode,
                now_ms=now_ms,
                customer_id=customer_id,
            )
            await self._store.keep_event(event, at_ms=now_ms)
        self.kick()

    # --- the actor --------------------------------------------------------------------------

    async def run(self) -> None:
        """Work the inbox off for ever. Errors: OwnershipLostError."""
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
                await self._count()
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

    async def _count(self) -> None:
        """See how the inbox stands, once a second at most."""
        now_ms = self._clock.now_ms()
        if abs(now_ms - self._counted_at_ms) >= SECOND_MS:
            self._inbox = await self._store.inbox_figures()
            self._counted_at_ms = now_ms

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
            result = await attempt_async(self._follower.settle, events)
            if isinstance(result, Crash):
                await self._fail(events, result.error)
            else:
                self._forget(events)
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

    def _heard(self, is_there: bool) -> None:
        """Count the readings in a row that failed; the first that succeeds wakes the loop."""
        if not is_there:
            self._failures_in_a_row += 1
        elif self._failures_in_a_row:
            self._failures_in_a_row = 0
            self._back.set()
            self.kick()

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
            event_id, tries = pending.event.id, pending.attempts + 1
            if is_transient:  # tries too: what is retried by hand is late from the beginning
                is_late = now_ms >= pending.received_at_ms + policy.patience_ms
                is_out = is_late and tries >= policy.attempts_max
            else:
                self._hopeless[event_id] += 1
                is_out = self._hopeless[event_id] >= policy.attempts_max
            if is_out:
                dead.append(event_id)
            else:
                later.setdefault(tries, []).append(event_id)
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
            self._forget(pending for pending in events if pending.event.id in dead)

    def _forget(self, events: Iterable[PendingEvent]) -> None:
        for pending in events:
            self._hopeless.pop(pending.event.id, None)
