from __future__ import annotations

from datetime import UTC, datetime

import pytest

from meterd.core.cycle import Cycle, period_end_ms
from meterd.core.units import from_datetime, rfc3339


def at(text: str) -> int:
    """Return an instant from `2026-01-31` or `2026-01-31T12:00:00`."""
    return from_datetime(datetime.fromisoformat(text).replace(tzinfo=UTC))


def make_cycle(start: str, end: str, *, anchor: str | None = None, months: int = 1) -> Cycle:
    """Return the cycle of an item."""
    return Cycle(
        subscription_id="sub_1",
        start_ms=at(start),
        end_ms=at(end),
        anchor_ms=at(anchor or start),
        months=months,
    )


def ends(cycle: Cycle | None, start: str, count: int) -> list[str]:
    """Return the ends of so many periods in a row."""
    found, at_ms = [], at(start)
    for _ in range(count):
        at_ms = period_end_ms(cycle, at_ms)
        found.append(rfc3339(at_ms)[:10])
    return found


def test_without_a_subscription_a_period_ends_with_the_utc_month() -> None:
    """The calendar is what an organization without a subscription is metered by."""
    assert ends(None, "2025-12-15", 3) == ["2026-01-01", "2026-02-01", "2026-03-01"]


def test_monthly_price_ends_with_its_item_and_goes_on_provisionally_from_the_anchor() -> None:
    """31 January, 28 February, 31 March: Stripe's own days, whatever month was short before."""
    cycle = make_cycle("2026-01-31", "2026-02-28")

    assert ends(cycle, "2026-01-31", 3) == ["2026-02-28", "2026-03-31", "2026-04-30"]


def test_item_that_began_on_a_clipped_day_is_not_cut_at_that_day_again() -> None:
    """An item from 28 February to 31 March is one period, not one to 28 March and a stub."""
    cycle = make_cycle("2026-02-28", "2026-03-31", anchor="2026-01-31")

    assert ends(cycle, "2026-02-28", 2) == ["2026-03-31", "2026-04-30"]


def test_only_a_price_of_one_month_has_periods_as_long_as_its_item() -> None:
    """Stripe's word counts where it speaks of a month, an odd first one included."""
    monthly = make_cycle("2026-01-10", "2026-03-05", anchor="2026-03-05")
    assert ends(monthly, "2026-01-10", 1) == ["2026-03-05"]

    two_months = make_cycle("2026-01-10", "2026-03-10", months=2)
    assert ends(two_months, "2026-01-10", 2) == ["2026-02-10", "2026-03-10"]


def test_an_item_without_length_is_refused() -> None:
    """It would open periods of no length for ever."""
    with pytest.raises(AssertionError):
        make_cycle("2026-01-10", "2026-01-10")


def test_yearly_price_has_monthly_periods_that_never_pass_its_end() -> None:
    """A year's allowance would otherwise be usable in a day."""
    cycle = make_cycle("2026-01-31", "2027-01-31", months=12)
    found = ends(cycle, "2026-01-31", 12)

    assert found[:3] == ["2026-02-28", "2026-03-31", "2026-04-30"]
    assert found[-1] == "2027-01-31"


def test_second_quarter_that_starts_on_a_clipped_day_keeps_the_anchors_day() -> None:
    """November 30 to February 28 by an anchor of the 31st: steps are 31st or the month's last."""
    cycle = make_cycle("2026-02-28", "2026-05-31", anchor="2025-08-31", months=3)

    assert ends(cycle, "2026-02-28", 4) == ["2026-03-31", "2026-04-30", "2026-05-31", "2026-06-30"]


def test_odd_item_steps_from_its_own_start() -> None:
    """A trial before a yearly price lies on no grid of the anchor at its end."""
    cycle = make_cycle("2026-01-10", "2026-02-24", anchor="2026-02-24", months=12)

    assert ends(cycle, "2026-01-10", 3) == ["2026-02-10", "2026-02-24", "2026-03-24"]


def test_period_before_the_item_ends_where_the_item_starts() -> None:
    """A start in the future ends the calendar's period there, and no later."""
    cycle = make_cycle("2026-02-20", "2026-03-20")

    assert ends(cycle, "2026-02-01", 2) == ["2026-02-20", "2026-03-20"]
    assert ends(make_cycle("2026-04-20", "2026-05-20"), "2026-02-01", 1) == ["2026-03-01"]


@pytest.mark.parametrize("months", [1, 3, 12])
def test_every_period_is_longer_than_nothing(months: int) -> None:
    """A period of no length would turn for ever; steps from every instant lie after it."""
    cycle = make_cycle("2024-02-29", "2024-03-29", months=months)
    for hours in range(0, 24 * 400, 7):
        start_ms = at("2024-02-01") + hours * 3_600_000

        assert start_ms < period_end_ms(cycle, start_ms) <= start_ms + 31 * 86_400_000
