"""Counters cheap enough for the hot path: plain numbers that a scrape reads when it comes.

Nothing here locks or formats: there is one thread, and whoever scrapes pays for the text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final


SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds for things that should take milliseconds and may take seconds."""

SIZES: Final = (1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0)
"""Upper bounds for how many things were handled together."""


class Histogram:
    """How often a value fell between which bounds, and the sum of all values."""

    __slots__ = ("bounds", "counts", "peak", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """Values up to each bound and above the one before; the last is above all bounds."""
        self.total = 0.0
        self.peak = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, seen so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times
        self.peak = max(self.peak, value)

    @property
    def count(self) -> int:
        """Return how many values were observed."""
        return sum(self.counts)


class Tally(dict[tuple[str, ...], int]):
    """Counts by labels: `tally[labels] += 1`; what was never counted is 0."""

    def __missing__(self, labels: tuple[str, ...]) -> int:
        """Begin at nothing."""
        return 0


class Histograms(dict[tuple[str, ...], Histogram]):
    """Histograms by labels, made when first used."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        super().__init__()
        self._bounds = bounds

    def __missing__(self, labels: tuple[str, ...]) -> Histogram:
        """Begin at nothing."""
        made = self[labels] = Histogram(self._bounds)
        return made
