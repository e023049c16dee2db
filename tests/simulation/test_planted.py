"""The test of the tester: every bug planted on purpose is found, and soon."""

from __future__ import annotations

import pytest

from tests.simulation.bugs import BUGS
from tests.simulation.run import Failure, live_once


WORLDS_MAX = 20
"""Most bugs show in the first three worlds."""


def test_enough_bugs_are_planted() -> None:
    """One of each family that has cost somebody money."""
    assert len(BUGS) >= 65


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found_within_twenty_worlds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A simulation that does not find what was put there would not find anything else."""
    BUGS[name](monkeypatch)

    assert any(isinstance(live_once(seed), Failure) for seed in range(WORLDS_MAX)), BUGS[
        name
    ].__doc__
