"""PostgreSQL frozen, unreachable, and cut off between a commit and its answer, under load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.findings import Findings
from tests.crash.outages import cut_after_commit, freeze, unreachable


pytestmark = pytest.mark.slow

AGENTS = 8


def assert_kept(found: Findings) -> None:
    """No promise is broken, and the trial really happened."""
    assert found.broken == []
    assert (found.lost_ms, found.doubled_ms, found.over_ms) == (0, 0, 0)
    assert found.cycles > 0
    assert found.acknowledgements > found.tasks > AGENTS


async def test_a_frozen_postgres_stops_no_enforcement_and_loses_nothing(data_dir: Path) -> None:
    """It answers nothing, not even an error: stops go out, writes get 503, all is visible after."""
    assert_kept(await freeze(data_dir, cycles=1, agents=AGENTS))


async def test_an_unreachable_postgres_stops_no_enforcement_and_loses_nothing(
    database_url: str,
) -> None:
    """First a black hole, then refused connections, with every open one reset."""
    assert_kept(await unreachable(database_url, cycles=2, agents=AGENTS))


async def test_what_was_committed_without_an_answer_counts_once(database_url: str) -> None:
    """The flush is sent again because nobody can know; its ids make that harmless."""
    found = await cut_after_commit(database_url, cycles=6, agents=AGENTS)

    assert found.cycles == 6
    assert_kept(found)
