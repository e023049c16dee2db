"""The ground everything else stands on: one seed is one world, on every machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import trio
from trio._core import _run as trio_scheduler

from tests.simulation.determinism import seeded_run
from tests.simulation.world import simulate


ROOT = Path(__file__).parents[2]
SEED = 4


def test_trio_still_has_the_two_private_names_that_make_it_repeatable() -> None:
    """When Trio moves them, this fails and not the sense of every other simulation."""
    assert isinstance(trio_scheduler._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert isinstance(trio_scheduler._r, Random)


def order_of_tasks(seed: int) -> list[int]:
    """Return the order in which twenty tasks that are ready together run."""

    async def main() -> list[int]:
        order: list[int] = []

        async def note(number: int) -> None:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                order.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(note, number)
        return order

    return seeded_run(seed, main)


def test_the_seed_alone_decides_the_order_of_tasks() -> None:
    """The same seed gives the same order, another seed another one."""
    assert order_of_tasks(1) == order_of_tasks(1)
    assert order_of_tasks(1) != order_of_tasks(2)


def test_a_world_is_the_same_again_bit_by_bit() -> None:
    """Every frame and every commit, in order, at the same instants."""
    assert simulate(SEED) == simulate(SEED)
    assert simulate(SEED).trace != simulate(SEED + 1).trace


def test_a_world_is_the_same_in_another_process() -> None:
    """Nothing may depend on where objects lie in memory or on the hash of a string."""
    program = f"from tests.simulation.world import simulate; print(simulate({SEED}).trace)"
    traces = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        ).stdout
        for hash_seed in ("1", "2")
    }

    assert traces == {simulate(SEED).trace + "\n"}
