"""Every promise, in every kind of bad luck: 200 worlds, and all that ever found something."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.simulation.run import Failure, live_all, parse_seeds


SEEDS = Path(__file__).with_name("seeds.txt")
IN_CI = parse_seeds("0-199")


def kept_seeds() -> list[int]:
    """Return the seeds that found something once."""
    lines = SEEDS.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_world_breaks_a_promise() -> None:
    """Nothing acknowledged is lost, nothing counts twice, no limit is passed, all becomes quiet.

    Each failure names the command that lives through it again.
    """
    seeds = sorted({*IN_CI, *kept_seeds()})

    failures = [
        f"{one.what}\n  {one.command}"
        for one in live_all(seeds, processes=os.cpu_count() or 1)
        if isinstance(one, Failure)
    ]

    assert failures == []
