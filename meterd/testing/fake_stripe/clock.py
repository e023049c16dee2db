"""The fake's own time: whole seconds since 1970 UTC, as Stripe counts.

Frozen clocks move only when told; ticking ones also follow the wall between jumps. The wall
is read here and nowhere else in the package.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable
from datetime import UTC, datetime


MINUTE_S = 60
HOUR_S = 3_600
DAY_S = 86_400


def wall_time_s() -> int:
    """Seconds since 1970 by the machine's clock; signatures are stamped with it."""
    return int(time.time())


class VirtualClock:
    """A clock that can jump forward, never back."""

    def __init__(
        self, *, start_s: int, ticks: bool = False, wall_s: Callable[[], int] = wall_time_s
    ) -> None:
        self._wall_s = wall_s
        self._base_s = start_s
        self._wall_base_s = wall_s()
        self.ticks = ticks

    @property
    def now_s(self) -> int:
        """Seconds since 1970 UTC in the fake's world."""
        if not self.ticks:
            return self._base_s
        return self._base_s + max(self._wall_s() - self._wall_base_s, 0)

    def jump_to(self, to_s: int) -> None:
        """Make it `to_s`; a moment already past changes nothing."""
        if to_s > self.now_s:
            self._base_s, self._wall_base_s = to_s, self._wall_s()

    def wall_now_s(self) -> int:
        """Seconds since 1970 UTC outside the fake: what receivers of webhooks compare with."""
        return self._wall_s()


def add_intervals(anchor_s: int, interval: str, steps: int) -> int:
    """Return the anchor moved by `steps` days, weeks, months or years; a day too many is clipped.

    Source: https://docs.stripe.com/billing/subscriptions/billing-cycle (31 January is followed
    by 28 February and then 31 March).
    """
    if interval == "day":
        return anchor_s + steps * DAY_S
    if interval == "week":
        return anchor_s + steps * 7 * DAY_S
    at = datetime.fromtimestamp(anchor_s, UTC)
    months = at.month - 1 + steps * (12 if interval == "year" else 1)
    year, month = at.year + months // 12, months % 12 + 1
    day = min(at.day, calendar.monthrange(year, month)[1])
    return int(at.replace(year=year, month=month, day=day).timestamp())


def boundary_after(anchor_s: int, interval: str, count: int, moment_s: int) -> int:
    """Return the first billing boundary strictly later than the moment."""
    if moment_s < anchor_s:
        return anchor_s
    approximate_s = {"day": DAY_S, "week": 7 * DAY_S, "month": 28 * DAY_S, "year": 365 * DAY_S}
    # Over-estimated by at most a tenth, then walked back: exact whatever the calendar does.
    step = (moment_s - anchor_s) // (approximate_s[interval] * count) + 1
    while step > 0 and add_intervals(anchor_s, interval, (step - 1) * count) > moment_s:
        step -= 1
    return add_intervals(anchor_s, interval, max(step, 1) * count)
