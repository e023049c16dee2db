"""Customers' systems that count calls and connections, and send them until they are told.

A sender keeps what was not acknowledged and sends it again in any grouping, twice at the same
time, sometimes under an id that is taken. `EventBooks` remembers what was told and acknowledged,
and does the sums again: every event once, for ever, whatever was taken back compensated.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from meterd.adapters.memory.store import Database, OrganizationRecord
from meterd.core.event import EventKey, UsageEvent
from meterd.core.plan import Resource
from tests.simulation.determinism import Chance
from tests.simulation.violation import expect
from tests.simulation.weather import Weather


if TYPE_CHECKING:
    from tests.simulation.meterd_process import MeterdProcess


HOUR_MS = 3_600_000
BATCH_MAX = 5


class EventBooks:
    """What was told and what was answered, and whether the ledger agrees."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._told: dict[tuple[str, EventKey], set[tuple[str, int]]] = defaultdict(set)
        self._booked: set[tuple[str, EventKey]] = set()
        self._voided: set[tuple[str, EventKey]] = set()
        self.acknowledged = 0

    def on_told(self, organization_id: str, event: UsageEvent) -> None:
        """Know an event that may come to be."""
        said = (event.resource.value, event.amount)
        self._told[organization_id, event.key].add(said)

    def on_answer(self, organization_id: str, event: UsageEvent, status: str) -> None:
        """P1: what is answered is stored at that moment, and as it was told."""
        known = self._database.organizations[organization_id].events.get(event.key)
        expect(known is not None, "P1 an answered event is stored", status, event)
        assert known is not None
        is_same = (known.event.resource, known.event.amount) == (event.resource, event.amount)
        if status == "id_conflict":
            told = self._told[organization_id, event.key]
            expect(len(told) > 1, "an id that nobody used before is no conflict", event)
            return
        self.acknowledged += 1
        expect(is_same, "P2 an event is stored as it was told", event, known.event)
        self._booked.add((organization_id, event.key))

    def on_voided(self, organization_id: str, key: EventKey) -> None:
        """P1: what was taken back is taken back at that moment."""
        self.acknowledged += 1
        known = self._database.organizations[organization_id].events[key]
        expect(known.void is not None, "P1 an answered void is stored", key)
        self._voided.add((organization_id, key))

    def audit(self) -> None:
        """P2: rows are events, one for one; periods count what their rows say."""
        for organization_id, record in self._database.organizations.items():
            self._audit_events(organization_id, record)
            self._audit_periods(record)

    def _audit_events(self, organization_id: str, record: OrganizationRecord) -> None:
        amounts: Counter[tuple[str, str]] = Counter()
        counts: Counter[tuple[str, str]] = Counter()
        for key, known in record.events.items():
            said = (known.event.resource.value, known.event.amount)
            expect(said in self._told[organization_id, key], "nobody told this event", known)
            kinds = ["event"] if known.void is None else ["event", "void"]
            for kind in kinds:
                sign = 1 if kind == "event" else -1
                amounts[known.event.resource.value, kind] += sign * known.event.amount
                counts[known.event.resource.value, kind] += 1
        rows = [row for row in record.rows.values() if row.source.value in {"event", "void"}]
        for row in rows:
            is_call = row.resource is Resource.API_CALL
            limits = record.terms[row.terms_seq].limits
            price = limits.api_call_usd if is_call else limits.websocket_minute_usd
            expect(row.unit_cost_usd == price, "the price of an event", row.id, price)
            expect(row.total_cost_usd == price * row.quantity, "what an event costs", row.id)
            amounts[row.resource.value, row.source.value] -= (
                row.quantity if is_call else row.quantity_ms
            )
            counts[row.resource.value, row.source.value] -= 1
        expect(not any(amounts.values()), "P2 the sums of events", organization_id, amounts)
        expect(not any(counts.values()), "P2 a row for each event", organization_id, counts)

    def _audit_periods(self, record: OrganizationRecord) -> None:
        calls: Counter[str] = Counter()
        times_ms: Counter[str] = Counter()
        minutes: Counter[str] = Counter()
        for row in record.rows.values():
            if row.resource is Resource.API_CALL:
                calls[row.billing_period] += row.quantity
            elif row.resource is Resource.WEBSOCKET_MINUTE:
                times_ms[row.billing_period] += row.quantity_ms
                minutes[row.billing_period] += row.quantity
        for _, period in record.periods.values():
            label = period.label
            expect(period.api_calls == calls[label], "I1 calls of a period", label)
            expect(period.websocket_ms == times_ms[label], "I1 connected time", label)
            expect(minutes[label] == times_ms[label] // 60_000, "I1 connected minutes", label)

    def conclude(self) -> None:
        """P6: what was acknowledged is there, and so is what took it back."""
        self.audit()
        for organization_id, key in self._booked:
            known = self._database.organizations[organization_id].events.get(key)
            expect(known is not None, "P1 an acknowledged event is lost", organization_id, key)
        for organization_id, key in self._voided:
            known = self._database.organizations[organization_id].events.get(key)
            is_void = known is not None and known.void is not None
            expect(is_void, "P1 an acknowledged void is lost", organization_id, key)


class Sender:
    """One system that counts for one organization."""

    def __init__(
        self,
        organization_id: str,
        *,
        books: EventBooks,
        chance: Chance,
        weather: Callable[[], Weather],
        find_meterd: Callable[[], MeterdProcess | None],
        true_ms: Callable[[], int],
    ) -> None:
        self._organization_id = organization_id
        self._books = books
        self._chance = chance
        self._weather = weather
        self._find_meterd = find_meterd
        self._true_ms = true_ms
        self._waiting: dict[UsageEvent, None] = {}
        self._known: list[EventKey] = []
        self._to_void: dict[EventKey, None] = {}
        self._numbers = 0
        self._counted = trio.Event()

    @property
    def is_done(self) -> bool:
        """Tell whether everything was acknowledged."""
        return not self._waiting and not self._to_void

    async def count(self) -> None:
        """Count something every few seconds."""
        every_s = self._weather().events_every_s
        while every_s:
            await trio.sleep(self._chance.soon(every_s))
            for _ in range(self._chance.whole(1, 3)):
                event = self._event()
                self._books.on_told(self._organization_id, event)
                self._waiting[event] = None
            self._counted.set()
            if self._known and self._chance.happens(0.2):
                self._to_void[self._chance.pick(*self._known)] = None

    def _event(self) -> UsageEvent:
        chance = self._chance
        is_old_name = self._numbers > 0 and chance.happens(0.1)
        self._numbers += not is_old_name
        number = chance.whole(1, self._numbers) if is_old_name else self._numbers
        ago_ms = chance.pick(0, 5_000, chance.whole(0, 48 * HOUR_MS), 24 * 20 * HOUR_MS)
        return UsageEvent(
            source=chance.pick("gateway", "edge") if is_old_name else "gateway",
            id=f"event_{number}",
            resource=chance.pick(Resource.API_CALL, Resource.WEBSOCKET_MINUTE),
            amount=chance.whole(1, 90_000),
            at_ms=chance.pick(None, self._true_ms() - ago_ms, self._true_ms() - ago_ms),
        )

    async def run(self) -> None:
        """Send what waits, for ever."""
        while True:
            self._counted = trio.Event()
            if self.is_done:
                await self._counted.wait()
            await trio.sleep(self._chance.soon(1.0))
            async with trio.open_nursery() as nursery:
                if self._waiting:
                    for _ in range(self._chance.pick(1, 1, 2)):
                        nursery.start_soon(self._send)
                if self._to_void:
                    nursery.start_soon(self._void, next(iter(self._to_void)))

    async def _send(self) -> None:
        events = list(self._waiting)
        self._chance.random.shuffle(events)
        batch = events[: self._chance.whole(1, BATCH_MAX)]
        told: list[str] = []

        async def ask(meterd: MeterdProcess) -> None:
            told.extend(await meterd.take_events(self._organization_id, batch))

        if await self._ask(ask):
            for event, status in zip(batch, told, strict=True):
                self._books.on_answer(self._organization_id, event, status)
                self._waiting.pop(event, None)
                if status == "accepted":
                    self._known.append(event.key)

    async def _void(self, key: EventKey) -> None:
        async def ask(meterd: MeterdProcess) -> None:
            await meterd.void_event(self._organization_id, key)

        if await self._ask(ask):
            self._books.on_voided(self._organization_id, key)
            self._to_void.pop(key, None)

    async def _ask(self, ask: Callable[[MeterdProcess], Awaitable[None]]) -> bool:
        """Ask meterd; False when the request, the answer or meterd itself was lost."""
        chance, weather = self._chance, self._weather()
        await trio.sleep(chance.soon(weather.frame_latency_s))
        meterd = self._find_meterd()
        if meterd is None or chance.happens(weather.frame_lost):
            return False
        is_answered = await meterd.ask(lambda: ask(meterd))
        is_heard = is_answered and not chance.happens(weather.frame_lost)
        await trio.sleep(chance.soon(weather.frame_latency_s) if is_heard else 0.5)
        return is_heard
