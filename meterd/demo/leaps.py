"""One time for meterd and the fake Stripe, moved by the demonstration.

Stripe's virtual clock leaps from one of its moments to the next; between two leaps time passes as
it does outside. meterd's clock goes along at once, by the way that an operator has for a clock
that was set forward (`SystemClock.accept_jump`): nothing else in meterd knows of it.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from meterd.adapters.clock import SystemClock
from meterd.core.units import SECOND_MS
from meterd.testing.fake_stripe.clock import VirtualClock


LEAP_MS_MIN = SECOND_MS
"""Less than this is time that passes, more is a leap."""


class SharedTime:
    """What a wall clock shows in the demonstration: to meterd, and on Stripe's signatures."""

    def __init__(self, start_s: int) -> None:
        """Begin at a second since 1970 UTC; `stripe` is the clock to follow, once it is there."""
        self.stripe: VirtualClock | None = None
        self._leapt_to_s = start_s
        self._leapt_at = trio.current_time()

    def now_ms(self) -> int:
        """Return the time in epoch milliseconds: Stripe's, and what has passed since it leapt."""
        if self.stripe is not None and self.stripe.now_s != self._leapt_to_s:
            self._leapt_to_s, self._leapt_at = self.stripe.now_s, trio.current_time()
        passed_ms = int((trio.current_time() - self._leapt_at) * SECOND_MS)
        return self._leapt_to_s * SECOND_MS + passed_ms

    def now_s(self) -> int:
        """Return the same in whole seconds."""
        return self.now_ms() // SECOND_MS


class LeapingClock(SystemClock):
    """meterd's clock, for whom every leap forward is accepted the moment it is noticed."""

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        super().__init__(wall_ms)
        self._wall_ms = wall_ms

    def now_ms(self) -> int:
        """Return the time in epoch milliseconds UTC, never less than before."""
        now_ms = super().now_ms()
        if self._wall_ms() - now_ms < LEAP_MS_MIN:
            return now_ms
        self.accept_jump()
        return super().now_ms()
