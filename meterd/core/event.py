"""Usage events: what others count and meterd books, each one once for ever.

An event is known by its source and its id within an organization. A copy with the same content is
a success that changes nothing; the same id with another content is a conflict. An event taken back
is answered by a second ledger row that compensates the first: nothing is ever deleted.
"""

from __future__ import annotations

import enum
import hashlib
import json
from decimal import Decimal
from typing import TypeAlias

import attrs

from meterd.core.plan import Resource
from meterd.core.units import DAY_MS, MINUTE_MS


EVENTS_MAX = 1_000
"""Events in one request: they are decided in one go."""

EVENT_PAST_MS = 35 * DAY_MS
"""How old an event may be when it is first told."""

EVENT_AHEAD_MS = 5 * MINUTE_MS
"""How far a sender's clock may run ahead."""

EVENT_NAME_CHARACTERS_MAX = 256
"""Longest source and id: both are in one index entry, which PostgreSQL bounds."""

CALLS_MAX = 1_000_000_000
"""Calls one event may report."""

EventKey: TypeAlias = tuple[str, str]
"""(source, id): unique within an organization."""


@attrs.frozen(kw_only=True)
class UsageEvent:
    """Usage as somebody else counted it."""

    source: str
    id: str
    resource: Resource
    amount: int
    """Calls, or milliseconds of connection time."""
    at_ms: int | None = None
    """`None`: when it is told."""
    agent_id: str | None = None
    user_id: str | None = None
    metadata_json: str = "{}"

    @property
    def key(self) -> EventKey:
        """Return what makes it one event, however often it is told."""
        return (self.source, self.id)

    @property
    def content(self) -> str:
        """Return a digest of what it says: a copy has the same, and an absent time is none."""
        said = [
            self.resource.value,
            self.amount,
            self.at_ms,
            self.agent_id,
            self.user_id,
            self.metadata_json,
        ]
        text = json.dumps(said, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@attrs.frozen(kw_only=True)
class BookedEvent:
    """An event that is in the ledger: enough to know a copy and to take it back."""

    source: str
    id: str
    content: str
    resource: Resource
    amount: int
    at_ms: int
    billing_period: str
    unit_cost_usd: Decimal
    terms_seq: int
    record_id: str
    """Its first ledger row; more than 9,999 minutes have several."""
    agent_id: str | None
    user_id: str | None
    seq: int

    @property
    def key(self) -> EventKey:
        """Return source and id."""
        return (self.source, self.id)


@attrs.frozen(kw_only=True)
class EventVoid:
    """That an event was taken back, and why."""

    event: BookedEvent
    reason: str
    at_ms: int
    record_id: str
    """The first compensating row."""
    seq: int


@attrs.frozen
class KnownEvent:
    """What is remembered of an event."""

    event: BookedEvent
    void: EventVoid | None = None

    @property
    def seq(self) -> int:
        """Return the fact that last changed it."""
        return self.event.seq if self.void is None else self.void.seq


class EventStatus(enum.Enum):
    """What became of one event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    ID_CONFLICT = "id_conflict"
    """The id is known with another content."""
    TIME_OUT_OF_RANGE = "time_out_of_range"
    COST_TOO_LARGE = "cost_too_large"
    """Quantity x unit cost does not fit a ledger row."""
