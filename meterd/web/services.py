"""What the web needs of the rest of meterd, in one frozen bundle that the composition root fills.

The web translates: requests to messages, outcomes to answers. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs

from meterd.actors.billing_desk import BillingDesk
from meterd.actors.books import Books
from meterd.actors.charges import Charges
from meterd.actors.connections import ConnectionMeter
from meterd.actors.inspection import Inspector
from meterd.actors.keyring import KeyRing
from meterd.actors.live import LiveFeed
from meterd.actors.organizations import Organizations
from meterd.actors.publisher import Publisher
from meterd.actors.reconciliation import StripeReconciliation
from meterd.actors.scheduler import Scheduler
from meterd.actors.stripe import StripeActor
from meterd.config import Config
from meterd.core.period import Period
from meterd.core.plan import Terms
from meterd.core.task import Task
from meterd.observe.metrics import Metrics
from meterd.ports.answers import AnswerStore
from meterd.ports.charges import ChargeStore
from meterd.ports.clock import Clock
from meterd.ports.directory import Directory
from meterd.ports.ids import Ids
from meterd.ports.people import People
from meterd.ports.stripe import StripeStore
from meterd.ports.trail import Trail
from meterd.ports.usage import UsageBooks
from meterd.ports.webhooks import WebhookStore
from meterd.web.readiness import Readiness
from meterd.web.tickets import Tickets


class Reader(Directory, UsageBooks, AnswerStore, Protocol):
    """What the web asks of the store without an actor: lists, one task, kept answers."""

    async def recall_task(self, organization_id: str, task_id: str) -> Task | None:
        """Return a task as stored, whatever its state."""
        ...

    async def recall_period(self, organization_id: str, label: str) -> tuple[Period, Terms] | None:
        """Return a closed period as stored, with the terms at its end."""
        ...


@attrs.frozen(kw_only=True)
class BillingServices:
    """Charges, and what needs a Stripe key."""

    store: ChargeStore
    charges: Charges
    desk: BillingDesk | None = None
    """`None`: there is no Stripe key."""
    reconciliation: StripeReconciliation | None = None


@attrs.frozen(kw_only=True)
class LiveServices:
    """The live feed."""

    feed: LiveFeed
    tickets: Tickets
    origins: frozenset[str] = frozenset()
    """Pages that may open it from a browser."""


@attrs.frozen(kw_only=True)
class WebhookServices:
    """Outgoing webhooks."""

    store: WebhookStore
    publisher: Publisher
    check_url: Callable[[str], object]
    """Raises WebhookRefusedError for a URL that is never posted to."""
    chance: Callable[[int], bytes]


@attrs.frozen(kw_only=True)
class WebServices:
    """Everything behind the routes."""

    organizations: Organizations
    inspector: Inspector
    keyring: KeyRing
    directory: Reader
    readiness: Readiness
    clock: Clock
    ids: Ids
    config: Config
    stripe_store: StripeStore | None = None
    """Where Stripe's events are kept; `None`: this process takes none."""
    stripe_actor: StripeActor | None = None
    books: Books | None = None
    """Reports, reconciliation and findings; `None`: this process keeps no books."""
    scheduler: Scheduler | None = None
    connections: ConnectionMeter | None = None
    """Meters agent streams; `None`: their time is not metered."""
    billing: BillingServices | None = None
    """`None`: this process charges nothing."""
    live: LiveServices | None = None
    """`None`: nobody can look."""
    webhooks: WebhookServices | None = None
    """`None`: this process tells nobody."""
    metrics: Metrics = attrs.Factory(Metrics)
    """What `/metrics` shows; the composition root puts readers in."""
    people: People | None = None
    trail: Trail | None = None
    """The audit log and dead letters; `None`: operators cannot look, nor lay hands on actors."""
