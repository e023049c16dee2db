"""What a period will come to if work goes on as in the last seven days.

The burn is the mean of the last seven days, or of the period so far when it is younger; it is an
estimate, so integer arithmetic that floors is exact enough. What is billed stops where work
stops, what would be used does not: the difference is what an upgrade would be for.
"""

from __future__ import annotations

from decimal import Decimal

import attrs

from meterd.core.money import ZERO, cost_usd
from meterd.core.plan import Limits
from meterd.core.units import DAY_MS, whole_minutes


BURN_WINDOW_MS = 7 * DAY_MS
"""How far back the mean burn looks."""


@attrs.frozen(kw_only=True)
class Burn:
    """Agent time used within the latest part of a period."""

    used_ms: int
    window_ms: int
    """Length of that part; 0: there is none yet, and nothing is forecast."""

    def over_ms(self, duration_ms: int) -> int:
        """Return what is used in so much time, at this rate."""
        return self.used_ms * duration_ms // self.window_ms if self.window_ms > 0 else 0

    def until_ms(self, used_ms: int) -> int | None:
        """Return how long it takes to use so much, a started millisecond counted; None: for ever.

        Nothing, or less than nothing, takes no time.
        """
        if used_ms <= 0:
            return 0
        if self.used_ms <= 0 or self.window_ms <= 0:
            return None
        return -(-used_ms * self.window_ms // self.used_ms)


@attrs.frozen(kw_only=True)
class Forecast:
    """The end of a period, seen from inside it."""

    used_ms: int
    """What would be used by its end, past every limit too."""
    overage_usd: Decimal
    """What its overage would be billed, as far as work may go; exact."""
    exhausted_at_ms: int | None
    """When work would stop, at the hard limit or the overage cap; `None`: not in the period."""

    @property
    def agent_minutes(self) -> int:
        """Return the whole minutes that would be used."""
        return whole_minutes(self.used_ms)


def burn_window_ms(period_start_ms: int, now_ms: int) -> int:
    """Return how much of the latest time counts: seven days, or since the period began."""
    return max(0, min(BURN_WINDOW_MS, now_ms - period_start_ms))


def forecast(
    limits: Limits,
    *,
    used_ms: int,
    overage_usd: Decimal,
    stop_ms: int | None,
    burn: Burn,
    now_ms: int,
    end_ms: int,
) -> Forecast:
    """Return what a period that has used `used_ms` and billed `overage_usd` comes to.

    `stop_ms` is the use at which work stops (`core.quota.stop_line_ms`); None: it never does.
    """
    left_ms = max(0, end_ms - now_ms)
    expected_ms = used_ms + burn.over_ms(left_ms)
    billed_ms = expected_ms if stop_ms is None else min(expected_ms, max(stop_ms, used_ms))
    more = whole_minutes(max(billed_ms, limits.included_ms)) - whole_minutes(
        max(used_ms, limits.included_ms)
    )
    rate = limits.overage_usd_per_minute if limits.grace_billed else ZERO
    exhausted_at_ms = None
    if stop_ms is not None:
        after_ms = burn.until_ms(stop_ms - used_ms)
        if after_ms is not None and after_ms <= left_ms:
            exhausted_at_ms = now_ms + after_ms
    return Forecast(
        used_ms=expected_ms,
        overage_usd=overage_usd + cost_usd(more, rate),
        exhausted_at_ms=exhausted_at_ms,
    )
