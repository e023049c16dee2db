"""When periods of a subscribed organization end: the cycle of a subscription's item.

Rule 1: with a price of one month a period is exactly what Stripe says of the item.
Rule 2: with a price of n months, or a year, periods are monthly steps inside the item, their day
        clipped to the month, never past the item's end.
Rule 3: past the item's end, until Stripe confirms the next, periods are provisional monthly steps.
Steps are counted from the billing anchor where the item lies on its grid, so that 31 January is
followed by 28 February and then by 31 March.
"""

from __future__ import annotations

import attrs

from meterd.core.period import MONTHS_PER_YEAR, add_months, next_month_start_ms
from meterd.core.units import to_datetime


@attrs.frozen(kw_only=True)
class Cycle:
    """The subscription item that an organization's periods follow."""

    subscription_id: str
    start_ms: int
    """`current_period_start` of the item."""
    end_ms: int
    """`current_period_end` of the item."""
    anchor_ms: int
    """`billing_cycle_anchor` of the subscription: names the day of the month."""
    months: int
    """How many months the price is for; a year is 12."""

    def __attrs_post_init__(self) -> None:
        """Require a length of the item, and a price for at least a month."""
        assert self.start_ms < self.end_ms, self
        assert self.months >= 1, self


def period_end_ms(cycle: Cycle | None, start_ms: int) -> int:
    """Return when a period that starts at an instant ends; without a cycle, with the month."""
    if cycle is None:
        return next_month_start_ms(start_ms)
    if start_ms < cycle.start_ms:  # the calendar's last period before the subscription's first
        return min(cycle.start_ms, next_month_start_ms(start_ms))
    if start_ms >= cycle.end_ms:
        return _step_after(cycle.anchor_ms, cycle.end_ms, start_ms)
    if cycle.months == 1:
        return cycle.end_ms
    return min(cycle.end_ms, _step_after(cycle.anchor_ms, cycle.start_ms, start_ms))


def _step_after(anchor_ms: int, origin_ms: int, instant_ms: int) -> int:
    """Return the first monthly step from the origin that lies after the instant."""
    base_ms = anchor_ms
    if add_months(anchor_ms, _months_between(anchor_ms, origin_ms)) != origin_ms:
        base_ms = origin_ms  # a trial or an odd first period: off the grid
    months = _months_between(base_ms, instant_ms)
    step_ms = add_months(base_ms, months)  # in the month of the instant, before or after it
    return step_ms if step_ms > instant_ms else add_months(base_ms, months + 1)


def _months_between(earlier_ms: int, later_ms: int) -> int:
    """Return the difference of the calendar months of two instants, days aside."""
    earlier, later = to_datetime(earlier_ms), to_datetime(later_ms)
    return (later.year - earlier.year) * MONTHS_PER_YEAR + later.month - earlier.month
