"""The time that agent streams are connected, metered like anything else: `websocket_minute`.

Connection time is summed per organization and booked as one event at the end of every UTC hour,
and of this process. What a crash loses is at most the running hour; what is booked is an event with
an id of its own, so that a booking whose reply is lost is repeated and counts once.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import structlog
import trio

from meterd.actors.organizations import Organizations
from meterd.core.commands import RecordEvents
from meterd.core.event import UsageEvent
from meterd.core.plan import Resource
from meterd.core.units import HOUR_MS, SECOND_MS
from meterd.errors import MeterdError
from meterd.ports.clock import Clock
from meterd.ports.ids import Ids


log = structlog.get_logger(__name__)

SOURCE = "meterd/connections"
"""The source of these events; an organization's own events should have another."""

RETRY_MS = 60_000
"""How soon a booking is tried again that could not be made."""


@attrs.define
class _Connected:
    """One organization's connections."""

    count: int = 0
    since_ms: int = 0
    """Up to here their time is in `pending_ms`."""
    pending_ms: int = 0

    def pass_time(self, now_ms: int) -> None:
        self.pending_ms += self.count * max(0, now_ms - self.since_ms)
        self.since_ms = now_ms


class ConnectionMeter:
    """Counts open connections and books their time."""

    def __init__(self, organizations: Organizations, *, clock: Clock, ids: Ids) -> None:
        self._organizations = organizations
        self._clock = clock
        self._ids = ids
        self._connected: dict[str, _Connected] = {}
        self._owed: dict[str, list[UsageEvent]] = {}

    def opened(self, organization_id: str) -> Callable[[], None]:
        """Meter a connection from now on; call the result when it ends, once or more often."""
        connected = self._connected.setdefault(organization_id, _Connected())
        connected.pass_time(self._clock.now_ms())
        connected.count += 1
        is_open = True

        def closed() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                connected.pass_time(self._clock.now_ms())
                connected.count -= 1

        return closed

    async def run(self) -> None:
        """Book at the end of every hour, for ever."""
        while True:
            now_ms = self._clock.now_ms()
            hour_ends_ms = now_ms - now_ms % HOUR_MS + HOUR_MS
            wait_ms = hour_ends_ms - now_ms
            if self._owed:
                wait_ms = min(wait_ms, RETRY_MS)
            await trio.sleep(wait_ms / SECOND_MS)
            if self._clock.now_ms() >= hour_ends_ms:
                self._close_books(hour_ends_ms)
            await self._book_owed()

    async def settle(self) -> None:
        """Book everything up to now: the process ends."""
        self._close_books(self._clock.now_ms())
        await self._book_owed()

    def _close_books(self, until_ms: int) -> None:
        """Turn the time up to an instant into events, one an organization."""
        for organization_id, connected in list(self._connected.items()):
            connected.pass_time(max(until_ms, connected.since_ms))
            if connected.pending_ms:
                event = UsageEvent(
                    source=SOURCE,
                    id=self._ids.new("conn"),
                    resource=Resource.WEBSOCKET_MINUTE,
                    amount=connected.pending_ms,
                    at_ms=until_ms - 1,  # the last instant it covers
                )
                self._owed.setdefault(organization_id, []).append(event)
            connected.pending_ms = 0
            if not connected.count:
                del self._connected[organization_id]

    async def _book_owed(self) -> None:
        """Book what is owed: all of it first, so that organizations share their commits."""
        seqs: dict[str, int] = {}
        for organization_id, events in list(self._owed.items()):
            try:
                answer = await self._organizations.ask(
                    organization_id, RecordEvents(events=tuple(events))
                )
            except MeterdError as error:
                self._failed(organization_id, error)
            else:
                seqs[organization_id] = answer.seq
        for organization_id, seq in seqs.items():
            try:
                await self._organizations.durable(organization_id, seq)
            except MeterdError as error:
                self._failed(organization_id, error)
            else:
                del self._owed[organization_id]

    def _failed(self, organization_id: str, error: MeterdError) -> None:
        log.warning("connection_time_not_booked", organization_id=organization_id, error=str(error))
        if not error.transient:
            del self._owed[organization_id]
