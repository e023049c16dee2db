"""Events and the store's answers about them: however late these are, nothing counts twice."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from meterd.core.commands import Recorded, RecordEvents, Voided, VoidEvent
from meterd.core.event import EventKey, EventStatus, KnownEvent, UsageEvent
from meterd.core.plan import Resource
from meterd.core.units import DAY_MS, SECOND_MS
from tests.served import Store, TrioClock, World, open_world


def call(event_id: str) -> UsageEvent:
    """Return a call."""
    return UsageEvent(source="s", id=event_id, resource=Resource.API_CALL, amount=1)


class SlowAnswers:
    """Lets look-ups of events take their time, long after they have read."""

    def __init__(self, store: Store, chance: random.Random, longest_s: float) -> None:
        self._ask = store.recall_events
        self._chance = chance
        self._longest_s = longest_s

    async def __call__(
        self, organization_id: str, keys: Sequence[EventKey]
    ) -> Sequence[KnownEvent]:
        found = await self._ask(organization_id, keys)
        await trio.sleep(self._chance.random() * self._longest_s)
        return found


async def told(world: World, *events: UsageEvent) -> tuple[EventStatus, ...]:
    """Tell events, durably."""
    organizations = world.services.organizations
    answer = await organizations.ask("org_1", RecordEvents(events=events))
    assert isinstance(answer.outcome, Recorded)
    await organizations.durable("org_1", answer.seq)
    return answer.outcome.statuses


@pytest.mark.parametrize("seed", range(5))
async def test_an_answer_that_is_older_than_a_commit_lets_nothing_count_twice(
    autojump_clock: MockClock, seed: int
) -> None:
    """Copies are booked, committed and forgotten while another's look-up is still under way."""
    chance = random.Random(seed)
    async with open_world() as world:
        await world.add()
        world.store.recall_events = SlowAnswers(world.store, chance, 2.0)  # type: ignore[method-assign]
        statuses: list[EventStatus] = []

        async def send(delay_s: float) -> None:
            await trio.sleep(delay_s)
            names = chance.sample([f"e{number}" for number in range(10)], 3)
            statuses.extend(await told(world, *map(call, names)))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(send, chance.random() * 5)

        assert statuses.count(EventStatus.ACCEPTED) == 10
        assert set(statuses) == {EventStatus.ACCEPTED, EventStatus.DUPLICATE}
        assert len(world.store.database.organizations["org_1"].rows) == 10
        cell = world.services.organizations.cells.get("org_1")
        assert cell is not None
        assert cell.state is not None
        assert not cell.state.recent_events, "what is durable has left the memory"


async def test_an_event_of_a_period_long_gone_is_taken_back_once_by_many(
    autojump_clock: MockClock,
) -> None:
    """The period is recalled, changed and committed; who comes second finds that."""
    async with open_world() as world:
        await world.add()
        await told(world, call("old"), call("other"))
        organizations = world.services.organizations
        clock = world.services.clock
        assert isinstance(clock, TrioClock)
        clock._from -= 120 * DAY_MS / SECOND_MS
        repeated: list[bool] = []

        async def void() -> None:
            command = VoidEvent(event_id="old", reason="a test")
            answer = await organizations.ask("org_1", command)
            assert isinstance(answer.outcome, Voided), answer
            repeated.append(answer.outcome.repeated)
            await organizations.durable("org_1", answer.seq)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(void)

        record = world.store.database.organizations["org_1"]
        calls = {period.label: period.api_calls for _, period in record.periods.values()}
        assert sorted(repeated) == [False] + [True] * 9
        assert calls["2026-02"] == 1
        assert sorted(row.quantity for row in record.rows.values()) == [-1, 1, 1]
