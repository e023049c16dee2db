"""Events in the core: booked once, in the period of their time, and taken back exactly."""

from __future__ import annotations

import itertools
from decimal import Decimal

import attrs
import pytest

from meterd.core.commands import (
    Decision,
    EventAmbiguous,
    EventUnknown,
    NeedsEvents,
    NeedsEventsNamed,
    NeedsPeriod,
    Recorded,
    RecordEvents,
    Tick,
    Voided,
    VoidEvent,
)
from meterd.core.decide import commit
from meterd.core.event import (
    CALLS_MAX,
    EVENT_AHEAD_MS,
    EVENT_PAST_MS,
    EventStatus,
    KnownEvent,
    UsageEvent,
)
from meterd.core.organization import OrganizationState, forget_events
from meterd.core.plan import Resource
from meterd.core.units import DAY_MS, MINUTE_MS
from meterd.core.usage import Kind, Source
from tests.organizations import (
    CATALOGUE,
    MARCH_MS,
    NOON_MS,
    drive,
    make_rules,
    make_state,
    run_to,
    start,
)


A, D, C = EventStatus.ACCEPTED, EventStatus.DUPLICATE, EventStatus.ID_CONFLICT
LATE = EventStatus.TIME_OUT_OF_RANGE

PRICED = attrs.evolve(
    CATALOGUE, api_call_usd=Decimal("0.002"), websocket_minute_usd=Decimal("0.01")
)


def call(event_id: str = "e", amount: int = 1, **fields: object) -> UsageEvent:
    """Return calls."""
    values: dict[str, object] = {"source": "s", "resource": Resource.API_CALL}
    return UsageEvent(id=event_id, amount=amount, **(values | fields))  # type: ignore[arg-type]  # checked by attrs


def record(
    state: OrganizationState,
    *events: UsageEvent,
    now_ms: int = NOON_MS,
    known: tuple[KnownEvent, ...] = (),
) -> tuple[EventStatus, ...]:
    """Tell events and return what became of each."""
    outcome = drive(state, RecordEvents(events=events, recalled=known), now_ms).outcome
    assert isinstance(outcome, Recorded), outcome
    return outcome.statuses


def void(
    state: OrganizationState,
    event_id: str = "e",
    *,
    now_ms: int = NOON_MS,
    known: tuple[KnownEvent, ...] = (),
) -> Decision:
    """Take an event back."""
    command = VoidEvent(event_id=event_id, reason="a test", recalled=known)
    return drive(state, command, now_ms)


def test_without_what_the_store_says_nothing_is_decided() -> None:
    """An event that is not in memory may have been booked a year ago."""
    state = make_state()

    recording = drive(state, RecordEvents(events=[call("a"), call("b"), call("a")]), NOON_MS)
    voiding = drive(state, VoidEvent(event_id="a", reason="r"), NOON_MS)

    assert recording.outcome == NeedsEvents(keys=(("s", "a"), ("s", "b")))
    assert voiding.outcome == NeedsEventsNamed(event_id="a", source=None)
    assert recording.facts is voiding.facts is None


def test_an_event_counts_once_in_a_request_in_memory_and_in_the_store() -> None:
    """The three places where a copy may meet its original."""
    state = make_state()

    assert record(state, call("a"), call("a"), call("a", 2), call("b")) == (A, D, C, A)
    assert record(state, call("a"), call("c")) == (D, A)
    stored = state.recent_events["s", "a"]
    forget_events(state, durable_seq=state.seq)
    assert record(state, call("a"), call("a", 5), known=(stored,)) == (D, C)

    assert state.period.api_calls == 3
    assert not {("s", "a")} & state.recent_events.keys()


def test_ids_of_different_sources_and_joined_differently_are_different_events() -> None:
    """`a-b`/`c` and `a`/`b-c` must never be one key."""
    state = make_state()

    events = [call("c", source="a-b"), call("b-c", source="a"), call("c", source="a")]

    assert record(state, *events) == (A, A, A)


@pytest.mark.parametrize(
    ("offset_ms", "status"),
    [
        (-EVENT_PAST_MS, A),
        (-EVENT_PAST_MS - 1, LATE),
        (EVENT_AHEAD_MS, A),
        (EVENT_AHEAD_MS + 1, LATE),
    ],
)
def test_the_time_of_an_event_may_be_so_far_off(offset_ms: int, status: EventStatus) -> None:
    """The boundaries are inclusive, to the millisecond."""
    assert record(make_state(), call(at_ms=NOON_MS + offset_ms)) == (status,)


def test_a_copy_is_a_success_however_late_it_comes() -> None:
    """De-duplicated for ever: a sender that retries after 36 days must be able to stop."""
    state = make_state()
    record(state, call(at_ms=NOON_MS))

    assert record(state, call(at_ms=NOON_MS), now_ms=NOON_MS + EVENT_PAST_MS + 1) == (D,)


def test_an_event_is_booked_in_the_period_of_its_time() -> None:
    """Closed periods, and the months before an organization's first period, included."""
    state = make_state()
    drive(state, Tick(), MARCH_MS)

    record(
        state,
        call("march", at_ms=MARCH_MS),
        call("february", at_ms=MARCH_MS - 1),
        call("january", at_ms=MARCH_MS - 30 * DAY_MS),
        now_ms=MARCH_MS,
    )

    counted = {p.label: (p.api_calls, p.closed) for p in (state.period, *state.closed_periods)}
    assert counted == {"2026-03": (1, False), "2026-02": (1, True), "2026-01": (1, True)}
    starts = sorted((p.start_ms, p.end_ms) for p in (state.period, *state.closed_periods))
    assert all(end == following for (_, end), (following, _) in itertools.pairwise(starts))


def test_an_event_past_the_open_period_is_booked_at_its_last_instant() -> None:
    """A sender's clock runs ahead: the period it names has not begun."""
    state = make_state()
    now_ms = MARCH_MS - 1_000

    record(state, call(at_ms=MARCH_MS + 60_000), now_ms=now_ms)

    [known] = state.recent_events.values()
    assert (known.event.at_ms, known.event.billing_period) == (MARCH_MS - 1, "2026-02")


def test_connection_time_is_cut_into_rows_that_fit_and_add_up() -> None:
    """A row holds 9,999 minutes at most; whole minutes telescope over odd milliseconds."""
    state = make_state()
    amounts = (59_999, 1, 25_000 * MINUTE_MS)
    events = [
        call(f"w{number}", amount, resource=Resource.WEBSOCKET_MINUTE)
        for number, amount in enumerate(amounts)
    ]

    decision = drive(state, RecordEvents(events=events, recalled=()), NOON_MS)

    assert decision.facts is not None
    rows = decision.facts.rows
    assert [row.quantity for row in rows] == [0, 1, 9_999, 9_999, 5_002]
    assert sum(row.quantity_ms for row in rows) == sum(amounts) == state.period.websocket_ms
    assert {row.kind for row in rows} == {Kind.METERED}
    assert len({row.id for row in rows}) == 5


def test_a_priced_event_costs_its_unit_price_and_a_void_takes_back_exactly_that() -> None:
    """Whatever the price is when it is taken back: the compensation has the original's."""
    rules = make_rules(catalogue=PRICED)
    state = make_state(rules=rules)
    record(state, call("e", 500), call("w", 90 * MINUTE_MS, resource=Resource.WEBSOCKET_MINUTE))
    cost = state.period.total_usd
    dearer = attrs.evolve(state.terms.limits, api_call_usd=Decimal("0.5"))
    state.terms = attrs.evolve(state.terms, seq=2, limits=dearer)

    first, second = void(state), void(state)
    void(state, "w")

    assert cost == Decimal("1.90")
    assert isinstance(first.outcome, Voided)
    assert second.outcome == attrs.evolve(first.outcome, repeated=True)
    assert second.facts is None
    assert first.facts is not None
    [row] = first.facts.rows
    assert (row.source, row.quantity, row.unit_cost_usd) == (Source.VOID, -500, Decimal("0.002"))
    assert row.terms_seq == 1
    assert (state.period.api_calls, state.period.websocket_ms) == (0, 0)
    assert state.period.total_usd == 0


def test_an_event_too_dear_for_a_row_is_refused_and_hinders_no_other() -> None:
    """`numeric(10,6)` holds less than $10,000."""
    state = make_state(rules=make_rules(catalogue=PRICED))

    statuses = record(state, call("a", CALLS_MAX), call("b", 4_999_999), call("c", 5_000_000))

    assert statuses == (EventStatus.COST_TOO_LARGE, A, EventStatus.COST_TOO_LARGE)


def test_events_spend_no_agent_time_and_no_limit_stops_them() -> None:
    """Calls are metered, not limited: they are counted past the hard limit and while suspended."""
    state = make_state(used_ms=1_100 * MINUTE_MS)

    assert record(state, call("a", 1_000)) == (A,)
    assert state.period.used_ms == 1_100 * MINUTE_MS


def test_a_void_of_what_nobody_knows_or_of_one_of_several_changes_nothing() -> None:
    """An id alone names an event only when a single source has it."""
    state = make_state()
    record(state, call("e", source="a"), call("e", source="b"))

    assert void(state, "zzz").outcome == EventUnknown()
    assert void(state).outcome == EventAmbiguous()
    named = VoidEvent(event_id="e", source="b", reason="r", recalled=())
    assert isinstance(drive(state, named, NOON_MS).outcome, Voided)


def test_an_event_that_was_taken_back_stays_known_whatever_is_in_memory() -> None:
    """A copy of it must not count again, and what is durable later must not leave earlier."""
    state = make_state()
    record(state, call("a"), call("b"))
    known = state.recent_events["s", "a"]
    void(state, "a")

    assert list(state.recent_events) == [("s", "b"), ("s", "a")], "in the order of their facts"
    assert record(state, call("a")) == (D,)
    state.recent_events = {}
    assert isinstance(void(state, "a", known=(known,)).outcome, Voided)
    assert record(state, call("a")) == (D,)


def test_a_void_of_an_event_in_a_forgotten_period_asks_for_the_period() -> None:
    """A correction may come a year later."""
    state = make_state()
    record(state, call())
    known = state.recent_events["s", "e"]
    state.closed_periods, state.recent_events = (), {}
    later = attrs.evolve(known, event=attrs.evolve(known.event, billing_period="2025-03"))

    assert void(state, known=(later,)).outcome == NeedsPeriod(label="2025-03")


def test_facts_of_events_can_be_applied_again_and_leave_memory_when_durable() -> None:
    """A crash replays them; a store that knows them makes the memory superfluous."""
    state = make_state()
    decision = drive(state, RecordEvents(events=[call("a")], recalled=()), NOON_MS)
    record(state, call("b"))
    before = dict(state.recent_events)

    commit(state, decision)
    assert state.recent_events == before

    forget_events(state, durable_seq=1)
    assert list(state.recent_events) == [("s", "b")]
    void(state, "b")
    forget_events(state, durable_seq=2)
    assert list(state.recent_events) == [("s", "b")], "its last fact, the void, is not durable"


def test_agent_time_and_events_do_not_disturb_each_other() -> None:
    """They share a period and nothing else."""
    state = make_state()
    start(state)
    run_to(state, "task_1", NOON_MS + 5 * MINUTE_MS)

    record(state, call("w", 7_000, resource=Resource.WEBSOCKET_MINUTE), now_ms=NOON_MS + 301_000)

    assert (state.period.used_ms, state.period.websocket_ms) == (5 * MINUTE_MS, 7_000)
