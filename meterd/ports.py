"""What the actors and the front need from the outside, as protocols.

Adapters implement them; `meterd.system` says which stands behind which. Every method that waits
may raise `StoreUnavailableError` (transient: try again) or `StoreRejectedError` (it never will
work); a cancelled or failed write may have happened, so writes are safe to repeat.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Final, Protocol

import attrs

from meterd.core.event import EventKey, KnownEvent
from meterd.core.journal import OrganizationBatch, StoredOrganization
from meterd.core.organization import Profile
from meterd.core.period import Period
from meterd.core.plan import Resource, Terms
from meterd.core.stripe_objects import Json, StripeEvent
from meterd.core.subscription import Invoice, Subscription
from meterd.core.task import Task, TaskState
from meterd.core.usage import Kind, UsageRow


class Clock(Protocol):
    """Wall time that never goes back and never jumps."""

    def now_ms(self) -> int:
        """Return the instant, in epoch milliseconds UTC."""
        ...


class Ids(Protocol):
    """Sortable identifiers for things that are not facts."""

    def new(self, prefix: str) -> str:
        """Return `prefix_` + 32 hex digits of a new UUIDv7."""
        ...


@attrs.frozen(kw_only=True)
class DeadLetter:
    """A message or a batch of facts that made its actor or the store fail."""

    id: str
    at_ms: int
    address: str
    kind: str
    """`message` or `facts`."""
    error: str
    detail_json: str = "{}"


class LedgerStore(Protocol):
    """Where facts become durable and organizations are read back."""

    async def load(self, organization_ids: Sequence[str]) -> Mapping[str, StoredOrganization]:
        """Return the organizations that exist, in one round trip; absent ids do not exist."""
        ...

    async def flush(self, batches: Sequence[OrganizationBatch]) -> None:
        """Write the batches in one transaction, each fact once however often it is sent.

        Errors: OwnershipLostError when the owner epoch has moved on: nothing was written.
        """
        ...

    async def recall_task(self, organization_id: str, task_id: str) -> Task | None:
        """Return a task as stored, whatever its state."""
        ...

    async def recall_period(self, organization_id: str, label: str) -> tuple[Period, Terms] | None:
        """Return a closed period as stored, with the terms at its end."""
        ...

    async def recall_events(
        self, organization_id: str, keys: Sequence[EventKey]
    ) -> Sequence[KnownEvent]:
        """Return those of the events with these (source, id) that are stored."""
        ...

    async def recall_events_named(
        self, organization_id: str, event_id: str
    ) -> Sequence[KnownEvent]:
        """Return the events with this id, whatever their source: two at most."""
        ...

    async def organizations_at_work(self) -> Sequence[str]:
        """Return the organizations with running tasks: they are activated at a start."""
        ...

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Write dead letters; a letter with a known id changes nothing."""
        ...


class QuotaSink(Protocol):
    """Where live quotas are mirrored for others; nothing is read back."""

    async def put(self, quotas: Sequence[tuple[str, bytes]], *, ttl_ms: int) -> None:
        """Make these quotas readable by organization. Errors: SinkUnavailableError."""
        ...


class KeySetSource(Protocol):
    """Where an issuer of session tokens publishes its keys."""

    async def read(self) -> bytes:
        """Return the JWKS document. Errors: KeySetUnavailableError."""
        ...


@attrs.frozen(kw_only=True)
class StoredKey:
    """An API key as stored; never the key itself."""

    id: str
    organization_id: str | None
    """`None`: an admin key."""
    scopes: frozenset[str]
    name: str
    last4: str
    created_at_ms: int
    created_by: str
    revoked_at_ms: int | None


class KeyStore(Protocol):
    """API keys, by the HMAC of the key under the pepper."""

    async def find_key(self, digest: bytes) -> StoredKey | None:
        """Return the key with this digest, revoked or not."""
        ...

    async def add_key(self, key: StoredKey, digest: bytes) -> bool:
        """Store a key; False when its organization does not exist."""
        ...

    async def keys_of(self, organization_id: str | None) -> Sequence[StoredKey]:
        """Return an organization's keys (`None`: the admin keys), newest first."""
        ...

    async def revoke_key(
        self, organization_id: str | None, key_id: str, *, at_ms: int, revoked_by: str = "operator"
    ) -> StoredKey | None:
        """Revoke a key of this organization; None when it has no such key. Repeats are fine."""
        ...

    async def revoked_since(self, at_ms: int) -> Sequence[str]:
        """Return the ids of keys revoked at or after an instant, by any process."""
        ...

    async def pepper(self, candidate: bytes) -> bytes:
        """Return the database's pepper, storing the candidate if it has none yet."""
        ...


@attrs.frozen(kw_only=True)
class NewOrganization:
    """What is written when an organization is created: its first terms and period."""

    organization_id: str
    profile: Profile
    terms: Terms
    period: Period
    created_by: str
    reason: str


@attrs.frozen(kw_only=True)
class OrganizationSummary:
    """One line of the list of organizations, as stored."""

    organization_id: str
    profile: Profile
    terms: Terms


class Directory(Protocol):
    """Organizations and tasks as stored: creation, lists and look-ups."""

    async def create_organization(self, new: NewOrganization) -> bool:
        """Create it with its audit entry; False when the id is taken.

        Errors: CustomerTakenError when another organization has the Stripe customer.
        """
        ...

    async def claim_customer(self, organization_id: str, customer_id: str | None) -> None:
        """Link a Stripe customer before the actor hears of it; CustomerTakenError if taken."""
        ...

    async def organizations(
        self, *, after: str | None, limit: int
    ) -> Sequence[OrganizationSummary]:
        """Return organizations ordered by id, after the given one."""
        ...

    async def tasks(
        self,
        organization_id: str,
        *,
        state: TaskState | None,
        after: tuple[int, str] | None,
        limit: int,
    ) -> Sequence[Task]:
        """Return tasks, newest start first; `after` is the (started_at_ms, task_id) seen last."""
        ...


@attrs.frozen(kw_only=True)
class RememberedAnswer:
    """What is known of a request that was sent under an idempotency key."""

    is_new: bool
    """Nothing was known: it is remembered from now on, without an answer."""
    fingerprint: bytes
    begun_at_ms: int
    status: int | None
    """`None`: no answer was kept; the process may have died in the middle."""
    sealed: bytes | None


class AnswerStore(Protocol):
    """Answers under idempotency keys, for a day."""

    async def begin_answer(
        self, scope: str, key_hash: bytes, fingerprint: bytes, *, at_ms: int, forget_before_ms: int
    ) -> RememberedAnswer:
        """Return what is known of the key, remembering it; what is older is forgotten."""
        ...

    async def keep_answer(self, scope: str, key_hash: bytes, *, status: int, sealed: bytes) -> None:
        """Keep the answer of a request that has begun."""
        ...

    async def drop_answer(self, scope: str, key_hash: bytes) -> None:
        """Forget a request that has begun: it changed nothing."""
        ...


@attrs.frozen(kw_only=True)
class RowFilter:
    """Which ledger rows are asked for; what is `None` does not matter."""

    billing_period: str | None = None
    task_id: str | None = None
    agent_id: str | None = None
    resource: Resource | None = None


@attrs.frozen(kw_only=True)
class DaySum:
    """The ledger of one UTC day, of one price: what `usage_days` says."""

    day_start_ms: int
    billing_period: str
    resource: Resource
    kind: Kind
    unit_cost_usd: Decimal
    quantity: int
    quantity_ms: int
    cost_usd: Decimal


class UsageBooks(Protocol):
    """The ledger as its owner reads it."""

    async def usage_rows(
        self, organization_id: str, chosen: RowFilter, *, after: tuple[int, str] | None, limit: int
    ) -> Sequence[UsageRow]:
        """Return rows, newest first; `after` is the (at_ms, id) seen last."""
        ...

    async def usage_days(self, organization_id: str, *, since_ms: int) -> Sequence[DaySum]:
        """Return the sums of the UTC days from the one that contains an instant on."""
        ...

    async def adjustment(self, organization_id: str, entry_id: str) -> Sequence[UsageRow] | None:
        """Return the rows of the adjustment with this audit entry; None: there is none."""
        ...

    async def usage_of_period(self, organization_id: str, label: str) -> Sequence[DaySum]:
        """Return the sums of the days of one billing period."""
        ...

    async def periods(
        self, organization_id: str, *, before_ms: int | None, limit: int
    ) -> Sequence[tuple[Period, Terms]]:
        """Return periods with their terms, newest first, that start before an instant."""
        ...


@attrs.frozen(kw_only=True)
class SubscriptionReading:
    """A subscription and its invoices as Stripe has them now, in Stripe's own JSON."""

    subscription: Json
    invoices: tuple[Json, ...] = ()


class Payments(Protocol):
    """Stripe's objects, read through its API.

    Every method may raise PaymentsUnavailableError (transient) or PaymentsRejectedError.
    """

    @property
    def livemode(self) -> bool:
        """Tell whether the key is for real money."""
        ...

    async def subscription(
        self, subscription_id: str, *, invoice_ids: Collection[str] = ()
    ) -> SubscriptionReading | None:
        """Return a subscription, its newest and all its open invoices, and the ones named.

        None when Stripe has no such subscription (yet).
        """
        ...

    async def subscriptions_of(self, customer_id: str) -> Sequence[str]:
        """Return the ids of a customer's subscriptions, none of them over."""
        ...


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


UNKNOWN_CUSTOMER: Final = "unknown_customer"
"""Outcome of events about somebody who is no organization of ours."""


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


@attrs.frozen(kw_only=True)
class AuditRecord:
    """An entry of the audit log: who changed what, why, from what to what."""

    id: str
    at_ms: int
    actor: str
    """The id of the key that asked, or the program."""
    action: str
    organization_id: str | None = None
    reason: str = ""
    before_json: str = "{}"
    after_json: str = "{}"


class Trail(Protocol):
    """What was done and what went wrong, as operators read it; nothing of it ever changes."""

    async def note(self, record: AuditRecord) -> None:
        """Write that something is about to be changed; a known id changes nothing."""
        ...

    async def audit(
        self,
        *,
        organization_id: str | None,
        action: str | None,
        after: tuple[int, str] | None,
        limit: int,
    ) -> Sequence[AuditRecord]:
        """Return entries, newest first; `after` is the (at_ms, id) seen last."""
        ...

    async def dead_letters(
        self, *, address: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[DeadLetter]:
        """Return dead letters, newest first; `after` is the (at_ms, id) seen last."""
        ...


SIGNED_IN: Final = "clerk:"
"""Stands before a person's id where a person who signed in is named as who did something."""


class People(Protocol):
    """What is stored under a person's id."""

    async def held(
        self, organization_id: str, user_id: str
    ) -> Mapping[str, Sequence[Mapping[str, object]]]:
        """Return a person's `tasks`, `records`, `keys` and `endpoints`, as JSON values."""
        ...

    async def erase(self, organization_id: str, user_id: str, pseudonym: str) -> tuple[int, int]:
        """Put a pseudonym in a person's place; return how many rows and tasks it was."""
        ...
