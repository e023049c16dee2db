"""The inbox of Stripe's events, and Stripe's objects as last seen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, Protocol

import attrs

from meterd.core.stripe_objects import StripeEvent
from meterd.core.subscription import Invoice, Subscription


UNKNOWN_CUSTOMER: Final = "unknown_customer"
"""Outcome of events about somebody who is no organization of ours."""


@attrs.frozen(kw_only=True)
class PendingEvent:
    """An event that waits in the inbox."""

    event: StripeEvent
    attempts: int
    received_at_ms: int


@attrs.frozen(kw_only=True)
class InboxEntry:
    """An event of the inbox as an operator sees it."""

    id: str
    type: str
    state: str
    """`pending`, `done` or `dead`."""
    outcome: str | None
    livemode: bool
    subscription_id: str | None
    customer_id: str | None
    invoice_id: str | None
    created_at_ms: int
    received_at_ms: int
    attempts: int
    next_attempt_at_ms: int
    last_error: str | None


@attrs.frozen(kw_only=True)
class InboxFigures:
    """How the inbox of Stripe's events stands."""

    waiting: int = 0
    oldest_at_ms: int | None = None
    """When the longest waiting event was received; None when none waits."""
    retried: int = 0
    """Waiting events that have failed before."""
    next_attempt_at_ms: int | None = None
    """When a waiting event is due next; None when none waits."""
    dead: int = 0
    """Events that were given up and wait for an operator."""


@attrs.frozen(kw_only=True)
class SeenSubscription:
    """A subscription as it was last seen; a later version is later news."""

    subscription: Subscription
    version: str
    object_json: str


@attrs.frozen(kw_only=True)
class SeenInvoice:
    """An invoice of a subscription as it was last seen."""

    invoice: Invoice
    version: str
    object_json: str


@attrs.frozen(kw_only=True)
class Seen:
    """Everything last seen of one organization, by id."""

    subscriptions: Mapping[str, SeenSubscription]
    invoices: Mapping[str, SeenInvoice]
    """Those that are not settled, and all of one subscription when it is named."""


@attrs.frozen(kw_only=True)
class Settlement:
    """What working off events leaves behind: objects as seen, events done."""

    organization_id: str | None = None
    subscriptions: Sequence[SeenSubscription] = ()
    invoices: Sequence[SeenInvoice] = ()
    done: Mapping[str, str] = attrs.Factory(dict)
    """Event id to outcome."""
    at_ms: int


class StripeStore(Protocol):
    """The inbox of events and the objects as last seen."""

    async def keep_event(self, event: StripeEvent, *, at_ms: int) -> bool:
        """Keep a verified event for ever; False when its id is known already."""
        ...

    async def due_events(
        self, *, now_ms: int, busy: Collection[str], subjects_max: int
    ) -> Sequence[PendingEvent]:
        """Return all pending events of subjects of which one is due, oldest first.

        A subject is a subscription id, or the event's own id; `busy` ones are left out.
        """
        ...

    async def settle(self, settlement: Settlement) -> None:
        """Write what was seen and mark events done, in one transaction."""
        ...

    async def postpone(
        self, event_ids: Collection[str], *, error: str, next_attempt_at_ms: int
    ) -> None:
        """Count a failed attempt of pending events and try them again later."""
        ...

    async def give_up(self, event_ids: Collection[str], *, error: str) -> None:
        """Count a failed attempt and let the events be dead: an operator may retry them."""
        ...

    async def retry_event(self, event_id: str, *, at_ms: int) -> bool:
        """Make a dead or done event pending again; False when there is no such event."""
        ...

    async def retry_unknown(self, customer_id: str, *, at_ms: int) -> int:
        """Make a customer's events pending again that were done as UNKNOWN_CUSTOMER; how many."""
        ...

    async def inbox(
        self, *, state: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[InboxEntry]:
        """Return events, newest received first; `after` is (received_at_ms, id) seen last."""
        ...

    async def inbox_figures(self) -> InboxFigures:
        """Return how many events wait and are dead."""
        ...

    async def organization_of(
        self, customer_id: str | None, organization_id: str | None
    ) -> str | None:
        """Return the organization with this customer, else the named one if it exists."""
        ...

    async def unsettled_invoices(self, subscription_id: str) -> Sequence[str]:
        """Return the ids of its invoices that were drafts or open when last seen."""
        ...

    async def seen(self, organization_id: str, *, subscription_id: str | None = None) -> Seen:
        """Return what was last seen of an organization."""
        ...
