"""The pulse: how late the event loop is, and a sign of life for the process's own supervisor.

A task that sleeps for a fixed time wakes up late exactly when every other task does, so its
lateness is what the loop adds to each request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import trio

from meterd.observe.counting import Histogram


BEAT_S: Final = 0.25
"""Seconds between beats: often enough to meet a busy moment, too seldom to cost anything."""


class Pulse:
    """Measures the loop and tells a watchdog that it turns."""

    def __init__(self, on_beat: Callable[[], None] = lambda: None) -> None:
        """Take what to call at every beat; it must not wait."""
        self._on_beat = on_beat
        self.lateness = Histogram()
        self.latest_s = 0.0
        """Lateness of the last beat, in seconds."""

    async def run(self) -> NoReturn:
        """Beat for ever."""
        while True:
            due_s = trio.current_time() + BEAT_S
            await trio.sleep_until(due_s)
            self.latest_s = max(0.0, trio.current_time() - due_s)
            self.lateness.observe(self.latest_s)
            self._on_beat()
