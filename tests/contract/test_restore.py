"""What is stored plus what is not stored yet is the living state, whatever has happened."""

from __future__ import annotations

import random

import pytest

from meterd.adapters.memory.store import as_stored
from meterd.core.journal import coalesce, restore
from meterd.core.organization import OrganizationState
from meterd.core.task import LOST_REPORTS_MS, Task
from tests.contract.conftest import Store
from tests.journeys import live, make_newborn
from tests.make import FixedClock
from tests.organizations import NOON_MS, make_state


def tasks_of(state: OrganizationState, now_ms: int) -> dict[str, Task]:
    """Return the tasks a store must give back: running, or lost and still listened to."""
    lost = [state.ended[task_id] for task_id in state.lost]
    heard = [t for t in lost if (t.ended_at_ms or 0) > now_ms - LOST_REPORTS_MS]
    return {t.task_id: as_stored(t, t.info) for t in (*state.running.values(), *heard)}


@pytest.mark.parametrize("seed", range(6))
async def test_flushed_and_pending_facts_restore_the_living_state(
    store: Store, clock: FixedClock, seed: int
) -> None:
    """A restart at any point must change no counter, no limit and no slot."""
    chance = random.Random(seed)
    state = make_state()
    await store.create_organization(make_newborn(state))
    facts, now_ms = live(state, seed)
    clock.at_ms = now_ms

    stored_up_to = chance.randrange(len(facts) // 2, len(facts) + 1)
    at = 0
    while at < stored_up_to:
        until = min(stored_up_to, at + chance.randrange(1, 9))
        batch = coalesce("org_1", facts[at:until])
        for _ in range(chance.choice([1, 1, 2])):
            await store.flush([batch])
        at = until
    stored = (await store.load(["org_1"]))["org_1"]
    restored = restore(
        stored,
        facts[stored_up_to:],
        rules=state.rules,
        serving_since_ms=NOON_MS,
        now_ms=now_ms,
    )

    assert stored.seq == stored_up_to
    for name in ("seq", "profile", "terms", "period", "closed_periods", "agents"):
        assert getattr(restored, name) == getattr(state, name), name
    assert tasks_of(restored, now_ms) == tasks_of(state, now_ms)
    assert restored.running.keys() == state.running.keys()
    for period in state.closed_periods:
        assert restored.terms_of(period) == state.terms_of(period)
