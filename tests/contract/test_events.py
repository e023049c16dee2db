"""What a store promises about events, sums per day and kept answers; on both."""

from __future__ import annotations

import attrs
import pytest

from meterd.core.commands import RecordEvents, VoidEvent
from meterd.core.event import KnownEvent, UsageEvent
from meterd.core.journal import coalesce
from meterd.core.organization import Facts, OrganizationState
from meterd.core.plan import Resource
from meterd.core.units import DAY_MS, MINUTE_MS
from meterd.core.usage import UsageRow
from meterd.ports.usage import RowFilter
from tests.contract.conftest import Store
from tests.journeys import make_newborn
from tests.organizations import NOON_MS, drive, make_state


pytestmark = pytest.mark.slow


def event(event_id: str, **fields: object) -> UsageEvent:
    """Return a call."""
    values: dict[str, object] = {"source": "s", "resource": Resource.API_CALL, "amount": 2}
    return UsageEvent(id=event_id, **(values | fields))  # type: ignore[arg-type]  # checked by attrs


def told(state: OrganizationState, *events: UsageEvent, now_ms: int = NOON_MS) -> Facts:
    """Return the facts of booking events."""
    facts = drive(state, RecordEvents(events=events, recalled=()), now_ms).facts
    assert facts is not None
    return facts


async def test_events_are_found_again_as_they_were_booked(store: Store) -> None:
    """What the core remembers of an event is what the store gives back, voids included."""
    state = make_state()
    await store.create_organization(make_newborn(state))
    facts = [
        told(
            state,
            event("a", agent_id="agent", user_id="user", metadata_json='{"k":1}'),
            event("a", source="other"),
            event("w", resource=Resource.WEBSOCKET_MINUTE, amount=MINUTE_MS),
        )
    ]
    voided = drive(state, VoidEvent(event_id="w", reason="oops", recalled=()), NOON_MS).facts
    assert voided is not None
    await store.flush([coalesce("org_1", [*facts, voided])])
    await store.flush([coalesce("org_1", [*facts, voided])])

    keys = [("s", "a"), ("other", "a"), ("s", "w"), ("s", "missing")]
    found = await store.recall_events("org_1", keys)
    named = await store.recall_events_named("org_1", "a")

    assert {each.event.key: each for each in found} == dict(state.recent_events)
    assert [each.event.source for each in named] == ["other", "s"]
    assert await store.recall_events("org_2", keys) == []
    assert await store.recall_events_named("org_2", "a") == []
    assert isinstance(found[0], KnownEvent)


async def test_rows_come_newest_first_in_pages_that_neither_skip_nor_repeat(store: Store) -> None:
    """Rows of the same instant are ordered too, and every filter narrows."""
    state = make_state()
    await store.create_organization(make_newborn(state))
    instants = [NOON_MS, NOON_MS, NOON_MS - DAY_MS, NOON_MS - 20 * DAY_MS, NOON_MS]
    events = [
        event(f"e{number}", at_ms=at_ms, agent_id=f"agent-{number % 2}")
        for number, at_ms in enumerate(instants)
    ]
    socket = event("w", resource=Resource.WEBSOCKET_MINUTE, amount=MINUTE_MS)
    await store.flush([coalesce("org_1", [told(state, *events, socket)])])

    every = await store.usage_rows("org_1", RowFilter(), after=None, limit=100)
    paged: list[UsageRow] = []
    after = None
    while page := await store.usage_rows("org_1", RowFilter(), after=after, limit=2):
        paged += page
        after = (page[-1].at_ms, page[-1].id)

    assert paged == list(every)
    assert [(row.at_ms, row.id) for row in every] == sorted(
        ((row.at_ms, row.id) for row in every), reverse=True
    )
    for chosen, count in (
        (RowFilter(agent_id="agent-1"), 2),
        (RowFilter(resource=Resource.WEBSOCKET_MINUTE), 1),
        (RowFilter(billing_period="2026-01"), 1),
        (RowFilter(billing_period="2026-02", agent_id="agent-0"), 3),
        (RowFilter(task_id="none"), 0),
    ):
        found = await store.usage_rows("org_1", chosen, after=None, limit=100)
        assert len(found) == count, chosen
    assert await store.usage_rows("org_2", RowFilter(), after=None, limit=100) == []


async def test_days_are_summed_once_however_often_a_flush_is_repeated(store: Store) -> None:
    """A flush whose reply was lost is sent again, and again with more behind it."""
    state = make_state()
    await store.create_organization(make_newborn(state))
    first = told(state, event("a"), event("b", at_ms=NOON_MS - DAY_MS))
    second = told(state, event("c"))
    for facts in ([first], [first], [first, second], [second]):
        await store.flush([coalesce("org_1", facts)])

    days = await store.usage_days("org_1", since_ms=NOON_MS)
    period = await store.usage_of_period("org_1", "2026-02")

    assert [(day.quantity, day.resource) for day in days] == [(4, Resource.API_CALL)]
    assert [day.quantity for day in period] == [2, 4]
    assert await store.usage_days("org_2", since_ms=0) == []


async def test_periods_are_listed_with_their_terms(store: Store) -> None:
    """Newest first, also the closed ones that only an event opened."""
    state = make_state()
    await store.create_organization(make_newborn(state))
    await store.flush([coalesce("org_1", [told(state, event("a", at_ms=NOON_MS - 20 * DAY_MS))])])

    found = await store.periods("org_1", before_ms=None, limit=10)
    rest = await store.periods("org_1", before_ms=found[0][0].start_ms, limit=10)

    assert [(period.label, period.closed) for period, _ in found] == [
        ("2026-02", False),
        ("2026-01", True),
    ]
    assert rest == found[1:]
    assert {terms.seq for _, terms in found} == {1}


async def test_answers_are_kept_forgotten_and_dropped(store: Store) -> None:
    """A key is taken by the first request; a day later it is free again."""
    begin = {"at_ms": NOON_MS, "forget_before_ms": NOON_MS - DAY_MS}

    first = await store.begin_answer("org_1 a", b"k", b"one", **begin)
    second = await store.begin_answer("org_1 a", b"k", b"two", **begin)
    elsewhere = await store.begin_answer("org_1 b", b"k", b"two", **begin)
    await store.keep_answer("org_1 a", b"k", status=201, sealed=b"secret")
    kept = await store.begin_answer("org_1 a", b"k", b"one", **begin)
    await store.drop_answer("org_1 b", b"k")
    dropped = await store.begin_answer("org_1 b", b"k", b"three", **begin)
    later_ms = NOON_MS + DAY_MS + 1
    later = await store.begin_answer(
        "org_1 a", b"k", b"four", at_ms=later_ms, forget_before_ms=later_ms - DAY_MS
    )

    assert [each.is_new for each in (first, second, elsewhere, kept, dropped, later)] == [
        True,
        False,
        True,
        False,
        True,
        True,
    ]
    assert second == attrs.evolve(first, is_new=False)
    assert (kept.fingerprint, kept.status, kept.sealed) == (b"one", 201, b"secret")
    assert (later.fingerprint, later.status, later.begun_at_ms) == (b"four", None, later_ms)
