from __future__ import annotations

from decimal import Decimal

import attrs
import pytest

from meterd.core.plan import Contract, Tier
from meterd.core.units import MINUTE_MS
from meterd.core.usage import (
    ROW_MINUTES_MAX,
    ROW_MS_MAX,
    Kind,
    Origin,
    Source,
    book_agent_time,
    pieces,
    row_id,
)
from tests.organizations import NOON_MS, make_period, make_terms


ORIGIN = Origin(
    organization_id="org_1", seq=7, source=Source.TASK, at_ms=NOON_MS, task_id="t", agent_id="a"
)


@pytest.mark.parametrize(
    ("before", "duration", "expected"),
    [
        (0, 10, [(10, False)]),
        (90, 10, [(10, False)]),
        (90, 11, [(10, False), (1, True)]),
        (100, 5, [(5, True)]),
        (105, -5, [(-5, True)]),
        (105, -6, [(-5, True), (-1, False)]),
        (100, -5, [(-5, False)]),
        (50, 0, []),
    ],
)
def test_time_is_cut_at_the_line(
    before: int, duration: int, expected: list[tuple[int, bool]]
) -> None:
    """Going up and coming back, with nothing of length zero."""
    assert list(pieces(before, duration, 100)) == expected


def test_long_time_is_cut_into_rows_that_fit() -> None:
    """9,999 minutes at most, for debits and for credits."""
    assert ROW_MINUTES_MAX == 9_999
    assert list(pieces(0, ROW_MS_MAX + 1, 0)) == [(ROW_MS_MAX, True), (1, True)]
    assert list(pieces(ROW_MS_MAX + 1, -ROW_MS_MAX - 1, ROW_MS_MAX * 9)) == [
        (-ROW_MS_MAX, False),
        (-1, False),
    ]
    assert list(pieces(2 * ROW_MS_MAX + 50, -2 * ROW_MS_MAX - 50, 10)) == [
        (-ROW_MS_MAX, True),
        (-ROW_MS_MAX, True),
        (-40, True),
        (-10, False),
    ]


def test_a_minute_is_priced_by_the_row_that_completes_it() -> None:
    """Time before the line is free, even when its minute ends in overage."""
    terms = make_terms(contract=Contract(agent_minutes=1))
    period = make_period(used_ms=59_999)
    booked, rows = book_agent_time(period, terms, 60_001, ORIGIN, ordinal=2)

    assert [(row.kind, row.quantity, row.quantity_ms) for row in rows] == [
        (Kind.INCLUDED, 1, 1),
        (Kind.OVERAGE, 1, 60_000),
    ]
    assert [row.recorded_before_ms for row in rows] == [59_999, 60_000]
    assert [row.total_cost_usd for row in rows] == [Decimal("0.000000"), Decimal("0.050000")]
    assert (booked.recorded_ms, booked.overage_minutes) == (120_000, 1)
    assert booked.overage_usd == booked.total_usd == Decimal("0.05")
    assert [row.id for row in rows] == [row_id(ORIGIN, 2), row_id(ORIGIN, 3)]
    assert {(row.seq, row.terms_seq, row.task_id) for row in rows} == {(7, 1, "t")}


def test_ids_continue_where_the_fact_left_off() -> None:
    """Two bookings of one fact never share an id."""
    period, terms = make_period(), make_terms()
    _, first = book_agent_time(period, terms, 1, ORIGIN, ordinal=0)
    _, second = book_agent_time(period, terms, 1, ORIGIN, ordinal=1)

    assert first[0].id != second[0].id
    assert book_agent_time(period, terms, 1, ORIGIN, ordinal=0)[1] == first


def test_free_grace_is_counted_and_given_away() -> None:
    """Free's band past the allowance has its own kind and costs nothing."""
    terms = make_terms(Tier.FREE, Contract(agent_minutes=0, grace_percent=0))
    booked, rows = book_agent_time(make_period(), terms, 2 * MINUTE_MS, ORIGIN, ordinal=0)

    assert [(row.kind, row.quantity, row.unit_cost_usd) for row in rows] == [
        (Kind.FREE_GRACE, 2, Decimal(0))
    ]
    assert (booked.overage_minutes, booked.total_usd) == (0, Decimal(0))


def test_a_credit_takes_overage_back_first() -> None:
    """The total moves back through the bands it came through."""
    terms = make_terms(contract=Contract(agent_minutes=2))
    period = make_period(used_ms=3 * MINUTE_MS)
    period = attrs.evolve(
        period, overage_minutes=1, overage_usd=Decimal("0.05"), total_usd=Decimal("0.05")
    )
    booked, rows = book_agent_time(period, terms, -2 * MINUTE_MS, ORIGIN, ordinal=0)

    assert [(row.kind, row.quantity) for row in rows] == [(Kind.OVERAGE, -1), (Kind.INCLUDED, -1)]
    assert (booked.recorded_ms, booked.overage_minutes) == (MINUTE_MS, 0)
    assert booked.total_usd == 0


def test_all_of_a_period_can_be_credited() -> None:
    """Down to nothing, in rows that fit."""
    period = make_period(used_ms=2 * ROW_MS_MAX + 5)
    booked, rows = book_agent_time(period, make_terms(), -period.used_ms, ORIGIN, ordinal=0)

    assert booked.recorded_ms == sum(row.quantity for row in rows) + 2 * ROW_MINUTES_MAX == 0
    assert min(row.quantity_ms for row in rows) == -ROW_MS_MAX


def test_a_total_never_becomes_negative() -> None:
    """Whoever credits more than there is has not checked."""
    with pytest.raises(AssertionError):
        book_agent_time(make_period(used_ms=5), make_terms(), -6, ORIGIN, ordinal=0)
