"""How much slower than real time our clock has run: what an honest report may be ahead of it.

The clock is slowed down while it waits for a system clock that was set back (adapters/clock.py).
Agents measure real time meanwhile, so a claim is judged by real time too (contract §3.5).
"""

from __future__ import annotations

from bisect import bisect_right

import attrs

from meterd.core.units import SECOND_MS


STEP_MS = SECOND_MS
"""Changes below this are not written down; the tolerance of a claim is five times as much."""

STEPS_MAX = 256
"""With more, every second one is forgotten; those around it say nearly the same."""


@attrs.frozen
class Slowing:
    """Real time minus our time, summed since the start, at some instants of our time."""

    at_ms: tuple[int, ...] = ()
    """Rising; in between the sum goes in a straight line."""
    total_ms: tuple[int, ...] = ()
    """The sum at each instant; negative when our clock ran ahead."""

    def since(self, start_ms: int) -> int:
        """Return how much more real time than ours has passed since an instant; 0 if it is less.

        Before this process began only our time is known, and counts as real.
        """
        if not self.at_ms:
            return 0
        after = bisect_right(self.at_ms, start_ms)
        if after == 0:
            return max(0, self.total_ms[-1])
        total_ms = self.total_ms[after - 1]
        if after < len(self.at_ms):
            from_ms, until_ms = self.at_ms[after - 1], self.at_ms[after]
            change_ms = self.total_ms[after] - total_ms
            total_ms += change_ms * (start_ms - from_ms) // (until_ms - from_ms)
        return max(0, self.total_ms[-1] - total_ms)

    def with_total(self, now_ms: int, total_ms: int) -> Slowing:
        """Return this with a new sum, or itself when little has changed."""
        if abs(total_ms - (self.total_ms[-1] if self.total_ms else 0)) < STEP_MS:
            return self
        at, totals = self.at_ms, self.total_ms
        if len(at) >= STEPS_MAX:
            at, totals = at[::2], totals[::2]
        return Slowing((*at, now_ms), (*totals, total_ms))


STEADY = Slowing()
"""A clock that keeps real time."""
