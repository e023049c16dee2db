"""One instant per key, earliest first: a heap with lazy deletion, bounded by its live keys."""

from __future__ import annotations

import heapq


SPARE_ENTRIES = 64
"""Outdated heap entries always tolerated before the heap is rebuilt."""


class Timers:
    """Instants in integer milliseconds; setting a key again moves it."""

    def __init__(self) -> None:
        self._at_ms: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []

    def set(self, key: int, at_ms: int) -> None:
        """Let `key` be due at `at_ms`, instead of whenever it was due before."""
        self._at_ms[key] = at_ms
        heapq.heappush(self._heap, (at_ms, key))
        if len(self._heap) > 2 * len(self._at_ms) + SPARE_ENTRIES:
            self._heap = [(due_ms, live) for live, due_ms in self._at_ms.items()]
            heapq.heapify(self._heap)

    def discard(self, key: int) -> None:
        """Forget `key`; unknown keys are fine."""
        self._at_ms.pop(key, None)

    def next_at_ms(self) -> int | None:
        """Give the earliest instant, or None when nothing is set."""
        while self._heap:
            at_ms, key = self._heap[0]
            if self._at_ms.get(key) == at_ms:
                return at_ms
            heapq.heappop(self._heap)
        return None

    def pop_due(self, until_ms: int) -> list[int]:
        """Take out the keys due at or before `until_ms`, earliest first."""
        due: list[int] = []
        while (at_ms := self.next_at_ms()) is not None and at_ms <= until_ms:
            _, key = heapq.heappop(self._heap)
            del self._at_ms[key]
            due.append(key)
        return due
