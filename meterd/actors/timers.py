"""Timers of all actors on one heap, served by one task.

A timer is an instant at which an organization wants to be woken. Setting an earlier one does not
remove the later: whoever is woken looks at the clock and at its own state, so a stale wake-up is
only a look too many.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf

import trio

from meterd.core.units import SECOND_MS
from meterd.observe.counting import Histogram
from meterd.ports.clock import Clock


NEAR_S = 1.0
"""Seconds: nearer than this a slewed clock is wrong by less than a busy loop is late."""

SLEWED_SHARE = 0.95
"""Of a longer wait this much is slept at once: the clock may run up to 5 % faster than we sleep."""

NAP_S_MAX = 60.0
"""Seconds after which a step of the clock that an operator accepted is noticed at the latest."""


class Timers:
    """Wakes actors at instants of the wall clock."""

    def __init__(self, clock: Clock, wake: Callable[[str, int], None]) -> None:
        self._clock = clock
        self._wake = wake
        self._heap: list[tuple[int, str]] = []
        self._scope: trio.CancelScope | None = None
        self.lateness_peak_ms = 0
        """How late the latest wake-up was: a busy loop shows here first."""
        self.lateness = Histogram()

    def __len__(self) -> int:
        """Return the number of timers set, stale ones included."""
        return len(self._heap)

    def set(self, organization_id: str, at_ms: int) -> None:
        """Wake this organization at an instant; in the past: as soon as possible."""
        heap = self._heap
        is_earliest = not heap or at_ms < heap[0][0]
        heapq.heappush(heap, (at_ms, organization_id))
        if is_earliest and self._scope is not None:
            self._scope.cancel()

    async def run(self) -> None:
        """Serve the timers for ever; wake-ups are synchronous and in order."""
        while True:
            heap, now_ms = self._heap, self._clock.now_ms()
            while heap and heap[0][0] <= now_ms:
                at_ms, organization_id = heapq.heappop(heap)
                self.lateness_peak_ms = max(self.lateness_peak_ms, now_ms - at_ms)
                self.lateness.observe((now_ms - at_ms) / SECOND_MS)
                self._wake(organization_id, at_ms)
            delay_s = _nap_s((heap[0][0] - now_ms) / SECOND_MS) if heap else inf
            with trio.CancelScope(deadline=trio.current_time() + delay_s) as self._scope:
                await trio.sleep_forever()
            self._scope = None


def _nap_s(delay_s: float) -> float:
    """Return how long to sleep before looking again at a clock that may be slewed or stepped."""
    return delay_s if delay_s <= NEAR_S else min(delay_s * SLEWED_SHARE, NAP_S_MAX)
