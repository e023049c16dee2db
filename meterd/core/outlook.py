"""Which customers may leave, and which have outgrown their plan.

A customer is at risk when it has used under 10 % of what its plan includes, pro rata of the time
that has passed. A period younger than three days proves nothing: it is judged together with the
one before it, and without one nobody is judged.
A customer is a candidate for an upgrade at 80 % of its allowance, or when it will get there.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from meterd.core.forecast import Burn
from meterd.core.units import DAY_MS


AT_RISK_PERCENT = 10
UPGRADE_PERCENT = 80
YOUNG_MS = 3 * DAY_MS
"""A period younger than this is judged together with the one before it."""


@attrs.frozen(kw_only=True)
class Allowance:
    """What was used of what a plan includes, in one period up to an instant."""

    used_ms: int
    included_ms: int
    elapsed_ms: int
    length_ms: int

    def __attrs_post_init__(self) -> None:
        """Refuse a period without length, or one of which more has passed than it has."""
        assert 0 <= self.elapsed_ms <= self.length_ms, self
        assert self.length_ms > 0, self


def is_low(now: Allowance, before: Allowance | None) -> bool:
    """Tell whether use is under 10 % pro rata; `before` is the previous, whole period."""
    if now.elapsed_ms >= YOUNG_MS:
        return _percent_below(now.used_ms, [now], AT_RISK_PERCENT)
    if before is None:
        return False
    return _percent_below(now.used_ms + before.used_ms, [before, now], AT_RISK_PERCENT)


def _percent_below(used_ms: int, parts: Sequence[Allowance], percent: int) -> bool:
    """Tell whether use is below a percentage of what these parts allowed, without rounding."""
    if not any(part.included_ms and part.elapsed_ms for part in parts):
        return False
    scale = 1
    for part in parts:
        scale *= part.length_ms
    allowed = sum(part.included_ms * part.elapsed_ms * (scale // part.length_ms) for part in parts)
    return used_ms * 100 * scale < allowed * percent


def pro_rata_percent(now: Allowance) -> int | None:
    """Return use in whole percent of the pro rata allowance; None: there is none yet."""
    allowed = now.included_ms * now.elapsed_ms
    return now.used_ms * 100 * now.length_ms // allowed if allowed else None


def used_percent(now: Allowance) -> int | None:
    """Return use in whole percent of the whole allowance; None: nothing is included."""
    return now.used_ms * 100 // now.included_ms if now.included_ms else None


def low_days(now: Allowance, before: Allowance | None, daily_ms: Sequence[int]) -> int:
    """Return for how many days in a row, today included, use has been low.

    `daily_ms` is the use of the latest days, the newest last; no further back is looked.
    """
    days = 0
    at = now
    for day_ms in reversed(daily_ms):
        if not is_low(at, before):
            break
        days += 1
        if at.elapsed_ms <= DAY_MS:
            break
        at = attrs.evolve(
            at, used_ms=max(0, at.used_ms - day_ms), elapsed_ms=at.elapsed_ms - DAY_MS
        )
    return days


@attrs.frozen(kw_only=True)
class Outgrown:
    """When a customer reaches a line, if it goes on as it does."""

    percent: int
    """Of its allowance, used now."""
    is_reached: bool
    """80 % is used already."""
    warning_at_ms: int | None
    """When 80 % is reached, within the period; `None` when it is reached already."""
    full_at_ms: int | None
    """When everything included is used; `None`: not within the period, or already."""


def outgrown(now: Allowance, burn: Burn, *, now_ms: int) -> Outgrown | None:
    """Return how a customer outgrows its allowance within the period, or None: it does not."""
    if not now.included_ms:
        return None
    left_ms = now.length_ms - now.elapsed_ms
    line_ms = now.included_ms * UPGRADE_PERCENT // 100
    is_reached = now.used_ms * 100 >= now.included_ms * UPGRADE_PERCENT
    warning_at_ms = None if is_reached else _within(burn, line_ms - now.used_ms, now_ms, left_ms)
    if not is_reached and warning_at_ms is None:
        return None
    is_full = now.used_ms >= now.included_ms
    full_ms = now.included_ms - now.used_ms
    return Outgrown(
        percent=now.used_ms * 100 // now.included_ms,
        is_reached=is_reached,
        warning_at_ms=warning_at_ms,
        full_at_ms=None if is_full else _within(burn, full_ms, now_ms, left_ms),
    )


def _within(burn: Burn, used_ms: int, now_ms: int, left_ms: int) -> int | None:
    after_ms = burn.until_ms(used_ms)
    return None if after_ms is None or after_ms > left_ms else now_ms + after_ms
