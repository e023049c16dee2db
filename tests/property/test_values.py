"""Values of the core against naive models: periods, labels, pieces, money, ids, reports."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from hypothesis import given, settings, strategies as st

from meterd.core.commands import Heartbeat, Tick
from meterd.core.ids import fact_id
from meterd.core.money import amount_cents, cost_usd, is_rate, round_to_cents, total_usd
from meterd.core.period import add_months, label_for, month_start_ms, next_month_start_ms
from meterd.core.plan import Contract, Tier
from meterd.core.units import (
    DAY_MS,
    MINUTE_MS,
    ceil_div,
    day_start_ms,
    from_datetime,
    minutes_added,
    rfc3339,
    to_datetime,
)
from meterd.core.usage import ROW_MS_MAX, pieces
from tests.organizations import NOON_MS, drive, make_finish, make_rules, make_state, start


anchors = st.builds(
    datetime,
    st.integers(1990, 2060),
    st.integers(1, 12),
    st.just(1),
    st.integers(0, 23),
    st.integers(0, 59),
    tzinfo=st.just(UTC),
)
instants = st.integers(-(10**13), 4 * 10**12)


@given(first=anchors, day=st.sampled_from([1, 28, 29, 30, 31]))
@settings(max_examples=60)
def test_thirty_years_of_monthly_steps_follow_a_naive_calendar(first: datetime, day: int) -> None:
    """Anchors on the 29th to 31st are clipped to short months and come back after them."""
    anchor = first.replace(day=min(day, calendar.monthrange(first.year, first.month)[1]))
    year, month = anchor.year, anchor.month
    for steps in range(1, 360):
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
        wanted = anchor.day
        while True:
            try:
                expected = anchor.replace(year=year, month=month, day=wanted)
                break
            except ValueError:
                wanted -= 1
        assert to_datetime(add_months(from_datetime(anchor), steps)) == expected


@given(instant_ms=instants)
def test_every_instant_lies_in_exactly_one_calendar_month(instant_ms: int) -> None:
    """Periods have neither gaps nor overlaps."""
    start_ms, end_ms = month_start_ms(instant_ms), next_month_start_ms(instant_ms)

    assert start_ms <= instant_ms < end_ms
    assert to_datetime(start_ms).day == to_datetime(end_ms).day == 1
    assert to_datetime(end_ms - 1).month == to_datetime(start_ms).month
    assert day_start_ms(start_ms) == start_ms


@given(starts=st.lists(st.integers(0, 40 * DAY_MS), unique=True, max_size=12))
def test_labels_are_unique_whatever_starts_in_a_month(starts: list[int]) -> None:
    """Two periods with one `billing_period` would share their counters in the ledger."""
    labels: list[str] = []
    for start_ms in sorted(starts):
        labels.append(label_for(NOON_MS + start_ms, labels))

    assert len(set(labels)) == len(labels)


@given(instant_ms=instants)
def test_instants_survive_the_trip_through_datetime_and_text(instant_ms: int) -> None:
    """The edges convert; nothing may be lost on the way."""
    assert from_datetime(to_datetime(instant_ms)) == instant_ms
    text = rfc3339(instant_ms)
    assert text.endswith("Z")
    assert from_datetime(datetime.fromisoformat(text)) == instant_ms


@given(instant=st.datetimes(timezones=st.just(UTC)))
def test_microseconds_are_floored_towards_the_past(instant: datetime) -> None:
    """A report may be a millisecond early, never late."""
    back = to_datetime(from_datetime(instant))

    assert timedelta(0) <= instant - back < timedelta(milliseconds=1)


@given(before_ms=st.integers(0, 10**7), steps=st.lists(st.integers(-(10**6), 10**6)))
def test_minutes_telescope_for_time_and_credits(before_ms: int, steps: list[int]) -> None:
    """The sum of the parts is the whole, however it was cut."""
    total_ms, minutes = before_ms, 0
    for step_ms in steps:
        minutes += minutes_added(total_ms, total_ms + step_ms)
        total_ms += step_ms

    assert minutes == total_ms // MINUTE_MS - before_ms // MINUTE_MS


@given(dividend=st.integers(-(10**12), 10**12), divisor=st.integers(1, 10**6))
def test_ceil_div_is_the_ceiling(dividend: int, divisor: int) -> None:
    """A wake-up a millisecond early would find nothing to announce."""
    quotient = ceil_div(dividend, divisor)

    assert (quotient - 1) * divisor < dividend <= quotient * divisor


@given(
    before_ms=st.integers(0, 3 * ROW_MS_MAX),
    duration_ms=st.integers(-3 * ROW_MS_MAX, 3 * ROW_MS_MAX),
    line_ms=st.integers(0, 3 * ROW_MS_MAX),
)
def test_pieces_cover_the_time_and_no_piece_crosses_the_line(
    before_ms: int, duration_ms: int, line_ms: int
) -> None:
    """Each row has one price and fits its column."""
    position_ms, total_ms = before_ms, 0
    found = list(pieces(before_ms, duration_ms, line_ms))
    for piece_ms, past in found:
        assert piece_ms * duration_ms > 0
        assert abs(piece_ms) <= ROW_MS_MAX
        low_ms, high_ms = sorted((position_ms, position_ms + piece_ms))
        assert low_ms >= line_ms if past else high_ms <= line_ms
        position_ms += piece_ms
        total_ms += piece_ms

    assert total_ms == duration_ms
    assert len(found) <= abs(duration_ms) // ROW_MS_MAX + 2


rates = st.integers(0, 999_999).map(lambda micros: Decimal(micros) / 1_000_000)


@given(quantity=st.integers(-9_999, 9_999), rate=rates)
def test_costs_are_exact_to_the_sixth_decimal(quantity: int, rate: Decimal) -> None:
    """What a row says is quantity times price, without any rounding."""
    cost = cost_usd(quantity, rate)

    assert Fraction(cost) == Fraction(rate) * quantity
    assert cost.as_tuple().exponent == -6
    assert not (cost == 0 and cost.is_signed())
    assert is_rate(rate)


@given(micros=st.lists(st.integers(-(10**12), 10**12), max_size=50))
def test_totals_are_rounded_half_up_once(micros: list[int]) -> None:
    """Half a cent goes away from zero; the sum itself is never rounded."""
    total = total_usd(tuple(Decimal(part).scaleb(-6) for part in micros))
    exact = Fraction(sum(micros), 10**6)
    cents = int(abs(exact) * 100 + Fraction(1, 2)) * (1 if exact >= 0 else -1)

    assert Fraction(total) == exact
    assert amount_cents(total) == cents
    assert Fraction(round_to_cents(total)) == Fraction(cents, 100)


parts = st.lists(st.one_of(st.text(max_size=4), st.integers(-5, 5)), min_size=1, max_size=4)


@given(first=parts, second=parts, at_ms=st.integers(0, 2**47))
def test_fact_ids_are_equal_only_for_equal_facts(
    first: list[str | int], second: list[str | int], at_ms: int
) -> None:
    """A retry finds its own row; another fact never does."""
    same = [str(part) for part in first] == [str(part) for part in second]

    assert (fact_id("rec", at_ms, *first) == fact_id("rec", at_ms, *second)) == same
    assert fact_id("rec", at_ms, *first) < fact_id("rec", at_ms + 1, *first)


@given(cuts=st.lists(st.integers(1, 59_000), min_size=1, max_size=60), plan=st.sampled_from(Tier))
def test_many_reports_bill_the_same_as_one(cuts: list[int], plan: Tier) -> None:
    """Halves equal the whole: losing a heartbeat never changes a bill."""
    contract = Contract(agent_minutes=3, grace_percent=30)
    rules = make_rules(task_timeout_ms=100 * DAY_MS)
    often = make_state(plan, contract, rules=rules)
    once = make_state(plan, contract, rules=rules)
    start(often)
    start(once)
    elapsed_ms = 0
    for cut_ms in cuts:
        elapsed_ms += cut_ms
        drive(often, Heartbeat("task_1", elapsed_ms), NOON_MS + elapsed_ms)
    for state in (often, once):
        drive(state, make_finish("task_1", elapsed_ms), NOON_MS + elapsed_ms)

    assert often.period.used_ms == once.period.used_ms == often.period.recorded_ms
    assert often.period.overage_minutes == once.period.overage_minutes
    assert often.period.total_usd == once.period.total_usd
    assert often.ended["task_1"].unbilled_ms == once.ended["task_1"].unbilled_ms


@given(reports=st.permutations([1, 10_000, 20_000, 20_000, 30_000, 59_999]), data=st.data())
def test_order_and_copies_of_reports_do_not_matter(reports: list[int], data: st.DataObject) -> None:
    """Cumulative values: the largest one counts, once."""
    state = make_state()
    start(state)
    for elapsed_ms in reports:
        for _ in range(data.draw(st.integers(1, 3))):
            drive(state, Heartbeat("task_1", elapsed_ms), NOON_MS + 59_999)

    assert state.period.used_ms == 59_999
    assert state.running["task_1"].metered_ms == 59_999


@given(months=st.integers(1, 40))
def test_months_pass_one_by_one_however_late_anyone_looks(months: int) -> None:
    """An organization nobody asks about still has a period for every month, without a gap."""
    state = make_state(used_ms=5 * MINUTE_MS)
    first = state.period
    now_ms = add_months(first.end_ms, months - 1)
    facts = drive(state, Tick(), now_ms).facts

    assert facts is not None
    assert len(facts.periods) == months + 1
    assert [period.closed for period in facts.periods] == [True] * months + [False]
    ends = [period.end_ms for period in facts.periods]
    assert [period.start_ms for period in facts.periods[1:]] == ends[:-1]
    assert state.period.used_ms == 0
    assert facts.periods[0].used_ms == first.used_ms
