"""The system clock is set while agents work: time goes on as if nothing had happened."""

from __future__ import annotations

import pytest

from tests.conftest import missing_service
from tests.crash.clock_steps import DAY_MS, SECOND_MS, YEAR_MS, step_clock
from tests.crash.findings import NotHereError
from tests.crash.test_outages import assert_kept


pytestmark = pytest.mark.slow

AGENTS = 8
STEPS_MS = (-40 * SECOND_MS, DAY_MS, -10 * YEAR_MS, 0)


async def test_steps_of_the_system_clock_lose_and_double_nothing(database_url: str) -> None:
    """By seconds, a day ahead, ten years back: no task is cut, no period ends."""
    try:
        found = await step_clock(database_url, STEPS_MS, AGENTS)
    except NotHereError as error:
        missing_service(f"no clock to set for this test: {error}")

    assert found.cycles == len(STEPS_MS)
    assert_kept(found)
