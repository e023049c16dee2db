"""Bugs planted in events, the customer's cap and jobs; see `planted`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest

from meterd.actors.organizations import Organizations
from meterd.actors.recall import Recall
from meterd.actors.scheduler import Scheduler
from meterd.adapters.memory.store import OrganizationRecord
from meterd.core import decide as decide_module, recording
from meterd.core.event import KnownEvent, UsageEvent
from tests.job_store import NaiveJobStore
from tests.simulation.planted import bug


@bug
def an_event_is_forgotten_once_it_is_stored(patch: pytest.MonkeyPatch) -> None:
    """Look for copies in memory only: an event sent again later counts again."""

    async def nothing(*_: Any) -> Sequence[Any]:
        return []

    patch.setattr(Recall, "events", nothing)

    def replace(self: OrganizationRecord, batch: Any) -> None:
        for event in batch.events:
            self.events[event.key] = KnownEvent(event)

    patch.setattr(OrganizationRecord, "put_events", replace)


@bug
def an_event_on_its_way_is_not_known(patch: pytest.MonkeyPatch) -> None:
    """Look for copies in the store only: two at the same time count twice."""
    record = recording.record_events

    def amnesic(state: Any, command: Any, now_ms: int) -> Any:
        state.recent_events.clear()
        return record(state, command, now_ms)

    patch.setattr(decide_module, "record_events", amnesic)


@bug
def another_event_of_the_same_name_is_a_copy(patch: pytest.MonkeyPatch) -> None:
    """Compare ids, not what they stand for."""
    patch.setattr(UsageEvent, "content", property(lambda self: self.id))


@bug
def an_event_is_answered_before_it_is_stored(patch: pytest.MonkeyPatch) -> None:
    """Wait for nothing: answer requests when they are decided."""

    async def at_once(*_: Any) -> None:
        return None

    patch.setattr(Organizations, "durable", at_once)


@bug
def an_event_is_taken_back_twice(patch: pytest.MonkeyPatch) -> None:
    """Compensate again when the same is asked again."""
    void = recording.void_event

    def again(state: Any, command: Any, now_ms: int) -> Any:
        recalled = [attrs.evolve(each, void=None) for each in command.recalled or ()]
        for key, each in state.recent_events.items():
            state.recent_events[key] = attrs.evolve(each, void=None)
        if command.recalled is not None:
            command = attrs.evolve(command, recalled=recalled)
        return void(state, command, now_ms)

    patch.setattr(decide_module, "void_event", again)


@bug
def a_void_keeps_what_it_cost(patch: pytest.MonkeyPatch) -> None:
    """Book the compensation at no price: the count is right and the bill is not."""
    book = recording._book

    def free(draft: Any, period: Any, resource: Any, amount: int, price: Any, *rest: Any) -> str:
        return book(draft, period, resource, amount, price if amount > 0 else price * 0, *rest)

    patch.setattr(recording, "_book", free)


@bug
def a_lost_beginning_blocks_a_job(patch: pytest.MonkeyPatch) -> None:
    """Never look back at a run that may have begun."""

    async def begin(self: Scheduler, run: Any) -> bool:
        return await self._store.begin(run)

    patch.setattr(Scheduler, "_begin", begin)


@bug
def a_run_that_was_killed_goes_on_for_ever(patch: pytest.MonkeyPatch) -> None:
    """Leave the runs of the process before as they are."""

    async def nothing(*_: Any) -> None:
        return None

    patch.setattr(NaiveJobStore, "interrupt_runs", nothing)
