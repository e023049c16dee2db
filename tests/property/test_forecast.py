"""Forecasts against a naive model that lives through the rest of the period, tick by tick."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given, settings, strategies as st

from meterd.core.forecast import Burn, burn_window_ms, forecast
from meterd.core.plan import Contract, Tier
from meterd.core.quota import stop_line_ms
from meterd.core.units import DAY_MS, MINUTE_MS
from tests.organizations import make_period, make_terms


TICKS_MAX = 400
"""Milliseconds that are lived through one by one."""


@settings(max_examples=300)
@given(
    minutes=st.integers(0, 3),
    grace=st.sampled_from([0, 10, 100, 1_000]),
    tier=st.sampled_from([Tier.FREE, Tier.STARTER, Tier.ENTERPRISE]),
    used_ms=st.integers(0, 9).flatmap(
        lambda minute: st.integers(-150, 150).map(lambda off: max(0, minute * MINUTE_MS + off))
    ),
    burnt_ms=st.integers(0, 1_000),
    window_ms=st.integers(0, 500),
    left_ms=st.integers(-5, TICKS_MAX),
)
def test_a_forecast_is_what_living_on_at_this_rate_comes_to(
    minutes: int,
    grace: int,
    tier: Tier,
    used_ms: int,
    burnt_ms: int,
    window_ms: int,
    left_ms: int,
) -> None:
    """Use, cost and the instant at which work stops, near every line, at every rate."""
    contract = Contract(agent_minutes=minutes, grace_percent=grace)
    limits = make_terms(tier, contract).limits
    stop_ms = stop_line_ms(limits, make_period())
    end_ms = 10_000 + left_ms
    found = forecast(
        limits,
        used_ms=used_ms,
        overage_usd=Decimal("1.5"),
        stop_ms=stop_ms,
        burn=Burn(used_ms=burnt_ms, window_ms=window_ms),
        now_ms=10_000,
        end_ms=end_ms,
    )

    at_ms, billed_ms, exhausted_at_ms = used_ms, used_ms, None
    for tick in range(max(left_ms, 0) + 1):
        burnt = burnt_ms * tick // window_ms if window_ms else 0
        at_ms = used_ms + burnt
        if stop_ms is None or at_ms < stop_ms:
            billed_ms = at_ms
        elif exhausted_at_ms is None:
            exhausted_at_ms = 10_000 + tick
            billed_ms = max(stop_ms, used_ms)
    paid = [
        minute
        for minute in range(20)
        if used_ms < (minute + 1) * MINUTE_MS <= billed_ms and minute >= minutes
    ]
    rate = Decimal("0.05") if tier is not Tier.FREE else Decimal(0)

    assert found.used_ms == at_ms
    assert found.agent_minutes == at_ms // MINUTE_MS
    assert found.overage_usd == Decimal("1.5") + rate * len(paid)
    if left_ms >= 0:
        assert found.exhausted_at_ms == exhausted_at_ms


@given(st.integers(-(10**6), 40 * DAY_MS), st.integers(0, 10**13))
def test_the_burn_looks_back_seven_days_but_never_into_the_period_before(
    age_ms: int, start_ms: int
) -> None:
    """A young period is judged by itself; one that has not begun is not judged."""
    window_ms = burn_window_ms(start_ms, start_ms + age_ms)

    assert 0 <= window_ms <= 7 * DAY_MS
    assert window_ms == max(0, min(age_ms, 7 * DAY_MS))
