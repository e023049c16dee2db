"""Tickets: how a browser opens a WebSocket without ever holding a key in a URL.

A ticket is good once, for a minute, and for what the key that asked for it may do. Only its hash
is kept, in memory: a ticket that a restart forgets is asked for again.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

from meterd.actors.keyring import Principal
from meterd.core.units import MINUTE_MS
from meterd.errors import OverloadedError
from meterd.ports.clock import Clock


TICKET_MS: Final = MINUTE_MS

TICKET_BYTES: Final = 32

TICKETS_MAX: Final = 100_000
"""Tickets waiting to be used."""

TICKETS_PER_ORGANIZATION_MAX: Final = 250
"""Of one organization, so that none takes what all have; a page uses its own at once."""

TICKET_CHARACTERS_MAX: Final = 128


class Tickets:
    """Tickets that were given and not used yet."""

    def __init__(self, clock: Clock, chance: Callable[[int], bytes]) -> None:
        self._clock = clock
        self._chance = chance
        self._waiting: OrderedDict[bytes, tuple[Principal, int]] = OrderedDict()
        self._counts: Counter[str | None] = Counter()
        """Waiting tickets by organization."""

    def give(self, principal: Principal) -> tuple[str, int]:
        """Return a new ticket and when it ends. Errors: OverloadedError."""
        now_ms = self._clock.now_ms()
        while self._waiting and next(iter(self._waiting.values()))[1] <= now_ms:
            self._drop(next(iter(self._waiting)))  # all live equally long: the oldest end first
        organization_id = principal.organization_id
        if (
            len(self._waiting) >= TICKETS_MAX
            or self._counts[organization_id] >= TICKETS_PER_ORGANIZATION_MAX
        ):
            raise OverloadedError("the store of tickets", retry_after_ms=TICKET_MS)
        text = "tkt_" + urlsafe_b64encode(self._chance(TICKET_BYTES)).rstrip(b"=").decode()
        ends_at_ms = now_ms + TICKET_MS
        self._waiting[_digest(text)] = (principal, ends_at_ms)
        self._counts[organization_id] += 1
        return text, ends_at_ms

    def take(self, ticket: str) -> Principal | None:
        """Return who asked for a ticket and forget it; None: there is no such ticket (any more)."""
        if len(ticket) > TICKET_CHARACTERS_MAX:
            return None
        digest = _digest(ticket)
        if digest not in self._waiting:
            return None
        principal, ends_at_ms = self._drop(digest)
        return principal if self._clock.now_ms() < ends_at_ms else None

    def _drop(self, digest: bytes) -> tuple[Principal, int]:
        principal, ends_at_ms = self._waiting.pop(digest)
        self._counts[principal.organization_id] -= 1
        if not self._counts[principal.organization_id]:
            del self._counts[principal.organization_id]
        return principal, ends_at_ms


def _digest(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode("utf-8", "surrogatepass")).digest()
