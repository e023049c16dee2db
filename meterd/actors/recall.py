"""Recalling: what a decision needs and the organization no longer has in memory.

Rule 1: what was recalled may be used only while the organization is the one that asked for it.
        After a reload an ended task may have left the memory, and an old answer would let it start
        a second time.
Rule 2: an old period leaves the memory with its adjustment, so the next one is recalled only when
        the one before is committed: otherwise one of the two would be lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import trio

from meterd.core.commands import Recalled, RecalledPeriod
from meterd.core.event import EventKey, KnownEvent
from meterd.core.organization import OrganizationState, forget_events
from meterd.core.units import SECOND_MS
from meterd.errors import StoreUnavailableError
from meterd.ports.ledger import LedgerStore


T = TypeVar("T")


class Recall:
    """Asks the store, within a time limit."""

    def __init__(self, store: LedgerStore, *, timeout_ms: int) -> None:
        self._store = store
        self._timeout_s = timeout_ms / SECOND_MS
        self._turns: dict[str, trio.Lock] = {}
        self._looking: dict[str, list[int]] = {}

    async def task(self, organization_id: str, task_id: str) -> Recalled:
        """Return a task as stored. Errors: StoreUnavailableError."""
        return Recalled(
            await self._in_time(
                "recall a task", lambda: self._store.recall_task(organization_id, task_id)
            )
        )

    async def period(self, organization_id: str, label: str) -> RecalledPeriod:
        """Return a closed period as stored. Errors: StoreUnavailableError."""
        return RecalledPeriod(
            await self._in_time(
                "recall a period", lambda: self._store.recall_period(organization_id, label)
            )
        )

    async def events(self, organization_id: str, keys: Sequence[EventKey]) -> Sequence[KnownEvent]:
        """Return those of these events that are stored. Errors: StoreUnavailableError."""
        return await self._in_time(
            "recall events", lambda: self._store.recall_events(organization_id, keys)
        )

    async def events_named(
        self, organization_id: str, event_id: str, source: str | None
    ) -> Sequence[KnownEvent]:
        """Return two at most of the events with this id. Errors: StoreUnavailableError."""
        if source is not None:
            return await self.events(organization_id, [(source, event_id)])
        return await self._in_time(
            "recall an event", lambda: self._store.recall_events_named(organization_id, event_id)
        )

    def turn(self, organization_id: str) -> trio.Lock:
        """Return the lock under which an old period is recalled and adjusted."""
        return self._turns.setdefault(organization_id, trio.Lock())

    @contextmanager
    def looking(self, organization_id: str, durable_seq: int) -> Iterator[None]:
        """Mark a look-up of events that is sure to see what was durable when it began."""
        begun = self._looking.setdefault(organization_id, [])
        begun.append(durable_seq)
        try:
            yield
        finally:
            begun.remove(durable_seq)
            if not begun:
                self._looking.pop(organization_id, None)

    def forget_events(self, state: OrganizationState, durable_seq: int) -> None:
        """Let go of events that every look-up, under way or to come, finds in the store."""
        if state.recent_events:
            looking = self._looking.get(state.organization_id, [])
            forget_events(state, durable_seq=min([durable_seq, *looking]))

    async def _in_time(self, action: str, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            with trio.fail_after(self._timeout_s):
                return await ask()
        except trio.TooSlowError as error:
            raise StoreUnavailableError(action, "no answer in time") from error
