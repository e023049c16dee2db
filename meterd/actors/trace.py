"""A trace of one actor: its last messages and what came of them, at a bounded cost.

Whoever switches it on decides for this actor only. A second in which more happens than the cap
allows is cut short, and says how much was left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import attrs

from meterd.core.units import SECOND_MS


KEPT: Final = 200
"""Entries in the ring."""

PER_SECOND_MAX: Final = 100
"""Messages written down in one second; the rest are counted. One costs about 20 µs."""


@attrs.frozen
class TraceEntry:
    """One message and its outcome; or, without a message, how many were left out before."""

    number: int
    at_ms: int
    message: str
    outcome: str
    skipped: int = 0
    """Messages between this entry and the one before that were not written down."""


class Trace:
    """The ring of one actor's last messages."""

    def __init__(self) -> None:
        self.entries: deque[TraceEntry] = deque(maxlen=KEPT)
        self.watchers = 0
        """Who looks at it live; the last one to leave switches off what a watcher switched on."""
        self.is_pinned = False
        """An operator has switched it on until told otherwise."""
        self._number = 0
        self._second = 0
        self._in_second = 0
        self._skipped = 0

    def note(self, at_ms: int, message: object, outcome: object) -> None:
        """Write down a message, or only count it when this second is full."""
        second = at_ms // SECOND_MS
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        if self._in_second > PER_SECOND_MAX:
            self._skipped += 1
            return
        self._number += 1
        self.entries.append(
            TraceEntry(self._number, at_ms, repr(message), repr(outcome), self._skipped)
        )
        self._skipped = 0

    def after(self, number: int) -> Sequence[TraceEntry]:
        """Return the entries past a number that are still in the ring, oldest first."""
        return [entry for entry in self.entries if entry.number > number]
