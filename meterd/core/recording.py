"""Booking events and taking them back: rows of kind `metered`, in the period of their time.

Rule 1: an event is booked once. What is known of it comes from memory, where it stays until it is
        durable, and from the store; the one who asks brings the latter (`recalled`).
Rule 2: whether an event is a copy is judged before its time is: a copy may come any time later.
Rule 3: a compensating row has the price and the terms of what it takes back, so the cost is gone
        exactly.
Rule 4: a sender's clock may run ahead, time does not: an event past the end of the open period is
        booked at the period's last instant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal

import attrs

from meterd.core.commands import (
    Decision,
    EventAmbiguous,
    EventUnknown,
    NeedsEvents,
    NeedsEventsNamed,
    NeedsPeriod,
    PeriodUnknown,
    RecalledPeriod,
    Recorded,
    RecordEvents,
    Voided,
    VoidEvent,
)
from meterd.core.event import (
    EVENT_AHEAD_MS,
    EVENT_PAST_MS,
    BookedEvent,
    EventKey,
    EventStatus,
    EventVoid,
    UsageEvent,
)
from meterd.core.metering import Draft
from meterd.core.money import cost_usd, total_usd
from meterd.core.organization import OrganizationState
from meterd.core.period import Period, add_months, label_for, month_start_ms
from meterd.core.plan import Resource, Terms
from meterd.core.units import minutes_added
from meterd.core.usage import ROW_MS_MAX, Kind, Origin, Source, UsageRow, row_id


ROW_COST_USD_END = Decimal(10_000)
"""A ledger row costs less than this: `numeric(10,6)`."""


def record_events(state: OrganizationState, command: RecordEvents, now_ms: int) -> Decision:
    """Book what is new, and say of each event what became of it."""
    if command.recalled is None:
        return Decision(NeedsEvents(keys=tuple({event.key: None for event in command.events})))
    known: dict[EventKey, BookedEvent] = {each.event.key: each.event for each in command.recalled}
    draft = Draft(state, now_ms)
    statuses = tuple(_record(draft, known, event) for event in command.events)
    if EventStatus.ACCEPTED not in statuses:
        return Decision(Recorded(statuses=statuses))
    return draft.conclude(Recorded(statuses=statuses))


def _record(draft: Draft, known: dict[EventKey, BookedEvent], event: UsageEvent) -> EventStatus:
    content = event.content
    recent = draft.state.recent_events.get(event.key)
    booked = known.get(event.key) if recent is None else recent.event
    if booked is not None:
        is_copy = booked.content == content
        return EventStatus.DUPLICATE if is_copy else EventStatus.ID_CONFLICT
    told_ms = draft.now_ms if event.at_ms is None else event.at_ms
    if not draft.now_ms - EVENT_PAST_MS <= told_ms <= draft.now_ms + EVENT_AHEAD_MS:
        return EventStatus.TIME_OUT_OF_RANGE
    period = _period_at(draft, told_ms)
    terms = _terms_of(draft, period)
    price_usd = _price_usd(terms, event.resource)
    if event.resource is Resource.API_CALL and price_usd * event.amount >= ROW_COST_USD_END:
        return EventStatus.COST_TOO_LARGE
    at_ms = min(told_ms, period.end_ms - 1)
    origin = Origin(
        organization_id=draft.state.organization_id,
        seq=draft.seq,
        source=Source.EVENT,
        at_ms=at_ms,
        agent_id=event.agent_id,
        user_id=event.user_id,
        metadata_json=event.metadata_json,
    )
    record_id = _book(draft, period, event.resource, event.amount, price_usd, terms.seq, origin)
    entry = BookedEvent(
        source=event.source,
        id=event.id,
        content=content,
        resource=event.resource,
        amount=event.amount,
        at_ms=at_ms,
        billing_period=period.label,
        unit_cost_usd=price_usd,
        terms_seq=terms.seq,
        record_id=record_id,
        agent_id=event.agent_id,
        user_id=event.user_id,
        seq=draft.seq,
    )
    known[event.key] = entry
    draft.events.append(entry)
    return EventStatus.ACCEPTED


def void_event(state: OrganizationState, command: VoidEvent, now_ms: int) -> Decision:
    """Compensate an event, once; the second time finds it as the first left it."""
    if command.recalled is None:
        return Decision(NeedsEventsNamed(event_id=command.event_id, source=command.source))
    found = {each.event.key: each for each in command.recalled} | {
        key: each
        for key, each in state.recent_events.items()
        if key[1] == command.event_id and command.source in (None, key[0])
    }
    if not found:
        return Decision(EventUnknown())
    if len(found) > 1:
        return Decision(EventAmbiguous())
    [known] = found.values()
    if known.void is not None:
        return Decision(Voided(void=known.void, repeated=True))
    draft = Draft(state, now_ms)
    label, recalled = known.event.billing_period, command.recalled_period
    period = _labelled(draft, label, recalled)
    if period is None:
        return Decision(NeedsPeriod(label=label) if recalled is None else PeriodUnknown())
    return _void(draft, known.event, period, command.reason)


def _void(draft: Draft, event: BookedEvent, period: Period, reason: str) -> Decision:
    metadata = {
        "event_id": event.id,
        "reason": reason,
        "source": event.source,
        "voids": event.record_id,
    }
    origin = Origin(
        organization_id=draft.state.organization_id,
        seq=draft.seq,
        source=Source.VOID,
        at_ms=max(period.start_ms, min(draft.now_ms, period.end_ms) - 1),
        agent_id=event.agent_id,
        user_id=event.user_id,
        metadata_json=json.dumps(
            metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ),
    )
    price_usd, terms_seq = event.unit_cost_usd, event.terms_seq
    record_id = _book(draft, period, event.resource, -event.amount, price_usd, terms_seq, origin)
    void = EventVoid(
        event=event, reason=reason, at_ms=draft.now_ms, record_id=record_id, seq=draft.seq
    )
    draft.voids.append(void)
    return draft.conclude(Voided(void=void))


# --- periods ------------------------------------------------------------------------------------


def _closed(draft: Draft) -> list[Period]:
    """Return the closed periods as the draft sees them, newest first."""
    known = {period.start_ms: period for period in draft.state.closed_periods} | draft.closed
    return [known[start_ms] for start_ms in sorted(known, reverse=True)]


def _period_at(draft: Draft, at_ms: int) -> Period:
    """Return the period that contains an instant; the open one reaches into the future.

    Time before the organization's first period gets calendar months of its own, closed ones.
    """
    oldest = draft.period
    for period in (draft.period, *_closed(draft)):
        if at_ms >= period.start_ms:
            return period
        oldest = period
    taken = {period.label for period in (draft.period, *_closed(draft))}
    terms_seq = _terms_of(draft, oldest).seq
    while at_ms < oldest.start_ms:
        start_ms = month_start_ms(oldest.start_ms - 1)
        oldest = Period(
            start_ms=start_ms,
            end_ms=min(add_months(start_ms, 1), oldest.start_ms),
            label=label_for(start_ms, taken),
            terms_seq=terms_seq,
            closed=True,
        )
        taken.add(oldest.label)
        draft.closed[oldest.start_ms] = oldest
    return oldest


def _terms_of(draft: Draft, period: Period) -> Terms:
    return draft.state.terms_of(period) if period.closed else draft.terms


def _labelled(draft: Draft, label: str, recalled: RecalledPeriod | None) -> Period | None:
    for period in (draft.period, *_closed(draft)):
        if period.label == label:
            return period
    found = None if recalled is None else recalled.found
    return None if found is None else found[0]


# --- rows ---------------------------------------------------------------------------------------


def _price_usd(terms: Terms, resource: Resource) -> Decimal:
    limits = terms.limits
    is_call = resource is Resource.API_CALL
    return limits.api_call_usd if is_call else limits.websocket_minute_usd


def _book(
    draft: Draft,
    period: Period,
    resource: Resource,
    amount: int,
    price_usd: Decimal,
    terms_seq: int,
    origin: Origin,
) -> str:
    """Add an amount to a period with the rows that say so; return the id of the first."""
    first = len(draft.rows)
    pieces = [amount] if resource is Resource.API_CALL else list(_row_pieces(amount))
    position_ms = period.websocket_ms
    for piece in pieces:
        if resource is Resource.API_CALL:
            quantity, quantity_ms, before_ms = piece, 0, 0
        else:
            quantity = minutes_added(position_ms, position_ms + piece)
            quantity_ms, before_ms = piece, position_ms
            position_ms += piece
        draft.rows.append(
            UsageRow(
                id=row_id(origin, len(draft.rows)),
                resource=resource,
                kind=Kind.METERED,
                source=origin.source,
                quantity=quantity,
                quantity_ms=quantity_ms,
                recorded_before_ms=before_ms,
                unit_cost_usd=price_usd,
                total_cost_usd=cost_usd(quantity, price_usd),
                billing_period=period.label,
                at_ms=origin.at_ms,
                agent_id=origin.agent_id,
                user_id=origin.user_id,
                terms_seq=terms_seq,
                seq=origin.seq,
                metadata_json=origin.metadata_json,
            )
        )
    rows = draft.rows[first:]
    calls = amount if resource is Resource.API_CALL else 0
    booked = attrs.evolve(
        period,
        api_calls=period.api_calls + calls,
        websocket_ms=position_ms,
        total_usd=total_usd((period.total_usd, *(row.total_cost_usd for row in rows))),
    )
    assert booked.api_calls >= 0, booked
    assert booked.websocket_ms >= 0, booked
    if period.closed:
        draft.closed[period.start_ms] = booked
    else:
        draft.period = booked
    return rows[0].id


def _row_pieces(duration_ms: int) -> Iterable[int]:
    """Cut time into what single rows may hold; the pieces keep its sign."""
    while duration_ms:
        piece_ms = max(-ROW_MS_MAX, min(ROW_MS_MAX, duration_ms))
        yield piece_ms
        duration_ms -= piece_ms
