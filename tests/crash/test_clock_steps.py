"""The system clock is set while agents work: time goes on as if nothing had happened."""

from __future__ import annotations

import pytest

from tests.crash.clock_steps import STEPS_MS, step_clock
from tests.crash.test_outages import assert_kept


pytestmark = pytest.mark.slow

AGENTS = 8


async def test_steps_of_the_system_clock_lose_and_double_nothing(database_url: str) -> None:
    """By seconds, an hour, 40 days, ten years back: no task is cut, no period ends."""
    found = await step_clock(database_url, STEPS_MS, AGENTS)

    assert found.cycles == len(STEPS_MS)
    assert_kept(found)
