"""Overspend under concurrency: what many agents can take past a hard limit."""

from __future__ import annotations

import pytest

from tests.crash.findings import exhausted_at_s
from tests.crash.overspend import race_for_the_last_minute


def test_the_budget_runs_out_when_the_running_tasks_have_used_it() -> None:
    """Two tasks, one second apart: 1 s alone, then both at once."""
    assert exhausted_at_s([10.0, 11.0], 500) == 10.5
    assert exhausted_at_s([10.0, 11.0], 1_000) == 11.0
    assert exhausted_at_s([11.0, 10.0], 3_000) == 12.0


@pytest.mark.slow
async def test_sixty_agents_racing_for_the_last_minute_are_billed_nothing_past_it(
    database_url: str,
) -> None:
    """All are stopped within the time a message takes, and the ledger ends at the limit."""
    found = await race_for_the_last_minute(database_url, rounds=1, slots=60)

    assert found.broken == []
    assert found.over_ms == 0
    assert len(found.stops_s) == found.tasks >= 50
