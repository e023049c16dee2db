"""Forecasts, customers at risk and customers that outgrow their plan."""

from __future__ import annotations

from decimal import Decimal

import attrs
import pytest

from meterd.core.forecast import Burn, burn_window_ms, forecast
from meterd.core.outlook import Allowance, is_low, low_days, outgrown, pro_rata_percent
from meterd.core.plan import NO_CONTRACT, Tier, resolve
from meterd.core.quota import stop_line_ms
from meterd.core.units import DAY_MS, MINUTE_MS
from tests.organizations import CATALOGUE, MARCH_MS, make_period


MONTH_MS = 30 * DAY_MS
STARTER = resolve(CATALOGUE, Tier.STARTER, NO_CONTRACT)


def make_allowance(used_minutes: int, day: int, *, included: int = 1_000) -> Allowance:
    """Return a month's use at the end of its n-th day."""
    return Allowance(
        used_ms=used_minutes * MINUTE_MS,
        included_ms=included * MINUTE_MS,
        elapsed_ms=day * DAY_MS,
        length_ms=MONTH_MS,
    )


@pytest.mark.parametrize(
    ("used", "day", "low"), [(49, 15, True), (50, 15, False), (99, 30, True), (100, 30, False)]
)
def test_under_ten_percent_is_pro_rata_of_what_has_passed(
    used: int, day: int, *, low: bool
) -> None:
    """In the middle of a month 5 % of the quota is 10 % of what could have been used."""
    assert is_low(make_allowance(used, day), None) is low


def test_day_two_flags_nobody_without_a_month_before() -> None:
    """A customer of two days has not had the time to use anything."""
    assert not is_low(make_allowance(0, 2), None)
    assert is_low(make_allowance(0, 3), None)


def test_a_young_period_is_judged_with_the_one_before() -> None:
    """A renewal neither forgives a sleeping customer nor accuses a busy one."""
    asleep, busy = make_allowance(20, 30), make_allowance(800, 30)

    assert is_low(make_allowance(0, 1), asleep)
    assert not is_low(make_allowance(0, 1), busy)


def test_nothing_included_is_nothing_to_be_below() -> None:
    """An enterprise without included minutes pays for what it uses."""
    nothing = make_allowance(0, 20, included=0)

    assert not is_low(nothing, None)
    assert pro_rata_percent(nothing) is None


def test_how_long_use_has_been_low_is_counted_back_day_by_day() -> None:
    """40 minutes on the fourth day were enough for a while: 10 % of the 13th day's share."""
    daily_ms = [0] * 3 + [40 * MINUTE_MS] + [0] * 16
    now = make_allowance(40, 20)

    expected = 0
    for day in range(20, 0, -1):
        used = 40 if day >= 4 else 0
        if not is_low(make_allowance(used, day), None):
            break
        expected += 1
    assert low_days(now, None, daily_ms) == expected == 8


def test_a_candidate_has_used_eighty_percent_or_will_have() -> None:
    """Today at 50 % with 40 minutes a day: 80 % in 7.5 days, 100 % in 12.5, of the 15 left."""
    now = make_allowance(500, 15)
    burn = Burn(used_ms=280 * MINUTE_MS, window_ms=7 * DAY_MS)
    found = outgrown(now, burn, now_ms=0)

    assert found is not None
    assert (found.percent, found.is_reached) == (50, False)
    assert found.warning_at_ms == 7 * DAY_MS + DAY_MS // 2
    assert found.full_at_ms == 12 * DAY_MS + DAY_MS // 2
    assert outgrown(now, Burn(used_ms=0, window_ms=7 * DAY_MS), now_ms=0) is None
    reached = outgrown(make_allowance(800, 15), Burn(used_ms=0, window_ms=0), now_ms=0)
    assert reached is not None
    assert (reached.is_reached, reached.full_at_ms) == (True, None)


def test_a_forecast_bills_what_the_plan_allows_and_tells_when_it_stops() -> None:
    """At 900 minutes and 50 a day: 1,900 wanted, 100 of overage billed, stopped on day 4."""
    found = forecast(
        STARTER,
        used_ms=900 * MINUTE_MS,
        overage_usd=Decimal(0),
        stop_ms=STARTER.hard_limit_ms,
        burn=Burn(used_ms=350 * MINUTE_MS, window_ms=7 * DAY_MS),
        now_ms=MARCH_MS,
        end_ms=MARCH_MS + 20 * DAY_MS,
    )

    assert found.agent_minutes == 1_900
    assert found.overage_usd == Decimal("5.000000")
    assert found.exhausted_at_ms == MARCH_MS + 4 * DAY_MS


def test_a_forecast_without_burn_is_what_there_is() -> None:
    """A new period has no past to look at."""
    found = forecast(
        STARTER,
        used_ms=MINUTE_MS,
        overage_usd=Decimal(0),
        stop_ms=STARTER.hard_limit_ms,
        burn=Burn(used_ms=0, window_ms=burn_window_ms(MARCH_MS, MARCH_MS)),
        now_ms=MARCH_MS,
        end_ms=MARCH_MS + DAY_MS,
    )

    assert (found.agent_minutes, found.exhausted_at_ms) == (1, None)
    assert burn_window_ms(0, 30 * DAY_MS) == 7 * DAY_MS


def test_a_forecast_stops_at_the_overage_cap_when_that_comes_first() -> None:
    """A cap of $2 pays for 40 minutes: stopped at 1,040 and billed $2, though 1,100 are allowed."""
    capped = attrs.evolve(STARTER, overage_cap_usd=Decimal(2))
    period = make_period(used_ms=900 * MINUTE_MS)
    found = forecast(
        capped,
        used_ms=period.used_ms,
        overage_usd=period.overage_usd,
        stop_ms=stop_line_ms(capped, period),
        burn=Burn(used_ms=350 * MINUTE_MS, window_ms=7 * DAY_MS),
        now_ms=MARCH_MS,
        end_ms=MARCH_MS + 20 * DAY_MS,
    )

    assert found.agent_minutes == 1_900
    assert found.overage_usd == Decimal("2.000000")
    assert found.exhausted_at_ms == MARCH_MS + 140 * DAY_MS // 50


def test_a_cap_of_an_unlimited_plan_is_where_it_ends() -> None:
    """Enterprise work never stops by the plan, but it does by the customer's own cap."""
    enterprise = resolve(CATALOGUE, Tier.ENTERPRISE, NO_CONTRACT)
    capped = attrs.evolve(enterprise, overage_cap_usd=Decimal(5))
    period = make_period(used_ms=0)
    found = forecast(
        capped,
        used_ms=0,
        overage_usd=Decimal(0),
        stop_ms=stop_line_ms(capped, period),
        burn=Burn(used_ms=70 * MINUTE_MS, window_ms=7 * DAY_MS),
        now_ms=MARCH_MS,
        end_ms=MARCH_MS + 20 * DAY_MS,
    )

    assert (found.overage_usd, found.exhausted_at_ms) == (Decimal(5), MARCH_MS + 10 * DAY_MS)


def test_an_unlimited_plan_is_never_exhausted_and_bills_everything() -> None:
    """Enterprise: every minute past the included ones, at the contract's rate."""
    limits = resolve(CATALOGUE, Tier.ENTERPRISE, NO_CONTRACT)
    found = forecast(
        limits,
        used_ms=100 * MINUTE_MS,
        overage_usd=Decimal("5.000000"),
        stop_ms=None,
        burn=Burn(used_ms=70 * MINUTE_MS, window_ms=7 * DAY_MS),
        now_ms=0,
        end_ms=10 * DAY_MS,
    )

    assert (found.agent_minutes, found.overage_usd) == (200, Decimal("10.000000"))
    assert found.exhausted_at_ms is None
