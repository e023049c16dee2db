"""The clock: what time it is, in epoch milliseconds UTC, for everything meterd decides.

Rule 1: this is the only module that reads the system's wall clock.
Rule 2: time never goes backwards. It is the wall clock at start plus Trio's monotonic clock,
slewed towards the system clock while the two are within a minute.
Rule 3: a larger difference is a jump. It is reported and not followed until an operator accepts
it or meterd restarts, because a wrong clock would close periods that can never be reopened.

The same class runs in a simulated world: give it another wall source, under trio's MockClock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from meterd.core.slowing import STEADY, Slowing


SLEW_OFFSET_MS_MAX = 60_000
"""Milliseconds of difference that are corrected silently; more is a jump.

NTP keeps a healthy machine within a second; a minute is what a bad one shows after a resume.
"""

SLEW_PER_SECOND_MS = 50
"""Milliseconds corrected per second: a minute's difference is gone in 20 minutes.

Below 1,000 by far, so that time keeps running forwards while it is being slowed.
"""

LOOK_INTERVAL_S = 1.0
"""Seconds between looks at the system clock, so that most calls cost one monotonic read."""


def system_wall_ms() -> int:
    """Return the system's wall clock in epoch milliseconds, wherever it was set to."""
    return time.time_ns() // 1_000_000


class SystemClock:
    """Wall time that only runs forwards. Use inside one Trio run, from its thread."""

    def __init__(
        self,
        wall_source: Callable[[], int] = system_wall_ms,
        *,
        on_jump: Callable[[int], None] | None = None,
    ) -> None:
        """Start at the wall source's time.

        `on_jump` is called with the new `jump_ms` whenever a jump appears, changes by more than
        a minute, or goes away (0); it must not wait.
        """
        self._wall_source = wall_source
        self._on_jump = on_jump
        self._base_ms = wall_source()
        self._base_s = trio.current_time()
        self._slew_ms = 0  # correction still to be applied since the base; signed
        self._last_ms = self._base_ms
        self._jump_ms = 0
        self._is_jump_accepted = False
        self._slowed_ms = 0
        self._slowing = STEADY

    @property
    def jump_ms(self) -> int:
        """Milliseconds the system clock is ahead of ours beyond a minute; 0 when we follow it."""
        return self._jump_ms

    @property
    def slowing(self) -> Slowing:
        """How much real time our time has left out while it waited for the system clock."""
        return self._slowing

    def now_ms(self) -> int:
        """Return the time in epoch milliseconds UTC, never less than before."""
        at_s = trio.current_time()
        now_ms = self._at(at_s)
        if at_s - self._base_s >= LOOK_INTERVAL_S:
            self._look(at_s, now_ms)
        self._last_ms = now_ms
        return now_ms

    def accept_jump(self) -> int:
        """Follow the system clock across the reported jump; return the milliseconds accepted.

        Forwards we step at once. Backwards would repeat time that is on record, so we only run
        slower (`SLEW_PER_SECOND_MS`) until the clocks meet; a restart is the quicker way.
        """
        at_s = trio.current_time()
        now_ms = self._at(at_s)
        accepted_ms = self._wall_source() - now_ms
        self._is_jump_accepted = True
        self._rebase(at_s, now_ms)
        self._base_ms = self._last_ms = max(now_ms, now_ms + accepted_ms)
        self._slew_ms = min(accepted_ms, 0)
        self._set_jump(0)
        return accepted_ms

    def _at(self, at_s: float) -> int:
        elapsed_ms = int((at_s - self._base_s) * 1_000)
        reach_ms = elapsed_ms * SLEW_PER_SECOND_MS // 1_000
        corrected_ms = max(-reach_ms, min(self._slew_ms, reach_ms))
        return max(self._base_ms + elapsed_ms + corrected_ms, self._last_ms)

    def _look(self, at_s: float, now_ms: int) -> None:
        """Compare with the system clock and decide how to run until the next look."""
        offset_ms = self._wall_source() - now_ms
        self._rebase(at_s, now_ms)
        if abs(offset_ms) <= SLEW_OFFSET_MS_MAX:
            self._is_jump_accepted = False
            self._slew_ms = offset_ms
            self._set_jump(0)
        elif self._is_jump_accepted and offset_ms < 0:
            self._slew_ms = offset_ms
        else:
            self._slew_ms = 0
            self._is_jump_accepted = False
            self._set_jump(offset_ms)

    def _rebase(self, at_s: float, now_ms: int) -> None:
        """Count on from here, and write down what has been left out until here."""
        # Whole milliseconds become the new base; the fraction stays in the monotonic base.
        real_ms = int((at_s - self._base_s) * 1_000)
        self._slowed_ms += real_ms - (now_ms - self._base_ms)
        self._slowing = self._slowing.with_total(now_ms, self._slowed_ms)
        self._base_s += real_ms / 1_000
        self._base_ms = now_ms

    def _set_jump(self, jump_ms: int) -> None:
        is_news = (jump_ms == 0) != (self._jump_ms == 0) or (
            abs(jump_ms - self._jump_ms) > SLEW_OFFSET_MS_MAX
        )
        if not is_news:
            return
        self._jump_ms = jump_ms
        if self._on_jump is not None:
            self._on_jump(jump_ms)
