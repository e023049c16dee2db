"""One seed decides everything: the order of tasks, the clock, every draw.

Trio shuffles the tasks that are ready together, on purpose. Two private names make the shuffle
repeatable; they are used here only, and a test fails loudly when one of them moves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import TypeVar

import trio
from trio._core import _run as trio_scheduler
from trio.testing import MockClock


T = TypeVar("T")


@contextlib.contextmanager
def _deterministic_scheduling(seed: int) -> Iterator[None]:
    """Make Trio's shuffle repeatable, and give everybody else their chance back afterwards."""
    shuffle: Random = trio_scheduler._r
    before = (trio_scheduler._ALLOW_DETERMINISTIC_SCHEDULING, shuffle.getstate())
    trio_scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # see above
    shuffle.seed(seed)
    try:
        yield
    finally:
        trio_scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before[0]  # type: ignore[misc]
        shuffle.setstate(before[1])


def seeded_run(seed: int, main: Callable[[], Awaitable[T]]) -> T:
    """Run in virtual time that jumps over waiting, scheduled by the seed alone."""
    with _deterministic_scheduling(seed):
        return trio.run(main, clock=MockClock(autojump_threshold=0))


class Chance:
    """A source of draws with a name: drawing from one does not change what another draws."""

    def __init__(self, seed: int, name: str) -> None:
        self._random = Random(f"{seed}/{name}")
        self.random = self._random

    def happens(self, probability: float) -> bool:
        """Tell whether something of this probability happens now."""
        return self._random.random() < probability

    def between(self, least: float, most: float) -> float:
        """Return a number between the two."""
        return self._random.uniform(least, most)

    def whole(self, least: int, most: int) -> int:
        """Return an integer from least to most, both included."""
        return self._random.randint(least, most)

    def pick(self, *choices: T) -> T:
        """Return one of the choices."""
        return choices[self._random.randrange(len(choices))]

    def soon(self, mean_s: float) -> float:
        """Return a wait of this mean, without memory."""
        return self._random.expovariate(1 / mean_s)

    def sometimes(self, most: float) -> float:
        """Return a probability for a whole run: none at all, in a third of the runs."""
        return 0.0 if self._random.random() < 1 / 3 else self._random.uniform(0, most)

    def jitter(self) -> Iterator[float]:
        """Yield numbers in [0, 1) for ever."""
        while True:
            yield self._random.random()
