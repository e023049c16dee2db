"""Values of the core as columns, and columns as values of the core.

Rule 1: instants are `timestamptz` there and milliseconds here; money is `numeric` in its own
columns and text inside jsonb, so it never passes through a float.
Rule 2: equal terms share one `Limits` and one `Contract` in memory: most organizations of a plan
have the same, and a hundred thousand copies of it would be most of the process.
Rule 3: metadata comes back as canonical JSON, because jsonb keeps neither spaces nor key order.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import attrs

from meterd.core.cycle import Cycle
from meterd.core.event import BookedEvent, EventVoid, KnownEvent
from meterd.core.ids import fact_id
from meterd.core.money import round_to_cents
from meterd.core.notification import Notification
from meterd.core.organization import (
    THRESHOLD_PERCENTS_DEFAULT,
    AuditEntry,
    Finding,
    Hold,
    Profile,
)
from meterd.core.period import Period
from meterd.core.plan import Contract, Limits, Resource, Terms, Tier, contract_fields
from meterd.core.task import Task, TaskInfo, TaskOutcome, TaskState
from meterd.core.units import from_datetime, to_datetime
from meterd.core.usage import Kind, Source, UsageRow
from meterd.ports.keys import StoredKey
from meterd.ports.trail import DeadLetter


Columns = tuple[Any, ...]
"""One row to write, in the order of the statement's parameters."""

SHARED_TERMS_MAX = 16_384
"""Different limits and contracts kept for sharing; older ones are simply parsed again."""


# --- terms --------------------------------------------------------------------------------------


def _money_fields(kind: type[attrs.AttrsInstance]) -> frozenset[str]:
    """Return the fields whose annotation mentions Decimal: text in JSON."""
    return frozenset(f.name for f in attrs.fields(kind) if "Decimal" in str(f.type))


_LIMITS_MONEY = _money_fields(Limits)
_CONTRACT_MONEY = _money_fields(Contract)


@functools.lru_cache(maxsize=SHARED_TERMS_MAX)
def limits_to_json(limits: Limits) -> str:
    """Return limits as the jsonb column keeps them."""
    fields = {f.name: getattr(limits, f.name) for f in attrs.fields(Limits) if f.init}
    return json.dumps(fields, default=str)


@functools.lru_cache(maxsize=SHARED_TERMS_MAX)
def limits_from_json(text: str) -> Limits:
    """Return the one `Limits` value that this text means."""
    return Limits(**_with_money(json.loads(text), _LIMITS_MONEY))


@functools.lru_cache(maxsize=SHARED_TERMS_MAX)
def contract_from_json(text: str) -> Contract:
    """Return the one `Contract` value that this text means."""
    return Contract(**_with_money(json.loads(text), _CONTRACT_MONEY))


def _with_money(fields: Mapping[str, Any], money: frozenset[str]) -> dict[str, Any]:
    return {
        name: Decimal(value) if name in money and value is not None else value
        for name, value in fields.items()
    }


def terms_columns(organization_id: str, terms: Terms) -> Columns:
    """Return a row of `organization_terms`."""
    return (
        organization_id,
        terms.seq,
        to_datetime(terms.effective_at_ms),
        terms.plan.value,
        json.dumps(contract_fields(terms.contract)),
        terms.trialing,
        limits_to_json(terms.limits),
        terms.reason,
    )


def terms_from(record: Any) -> Terms:
    """Return terms from (seq, effective_at, plan_tier, contract, trialing, limits, reason)."""
    seq, effective_at, plan_tier, contract, trialing, limits, reason = record
    return Terms(
        seq=seq,
        effective_at_ms=from_datetime(effective_at),
        plan=Tier(plan_tier),
        contract=contract_from_json(contract),
        trialing=trialing,
        limits=limits_from_json(limits),
        reason=reason,
    )


# --- profile ------------------------------------------------------------------------------------


def profile_columns(organization_id: str, profile: Profile) -> Columns:
    """Return the changeable columns of `organizations`."""
    return (
        organization_id,
        profile.name,
        profile.stripe_customer_id,
        Hold.OPERATOR in profile.holds,
        Hold.PAYMENT in profile.holds,
        profile.hold_reason,
        *_cycle_columns(profile.cycle),
        _optional_instant(profile.past_due_since_ms),
        "\n".join(sorted(profile.billing_alerts)),
        ",".join(map(str, profile.threshold_percents)),
    )


def profile_from(record: Mapping[str, Any]) -> Profile:
    """Return the profile from a record with the columns of `organizations`."""
    holds = ((Hold.OPERATOR, "operator_hold"), (Hold.PAYMENT, "payment_hold"))
    return Profile(
        name=record["name"],
        stripe_customer_id=record["stripe_customer_id"],
        holds=frozenset(hold for hold, column in holds if record[column]),
        hold_reason=record["hold_reason"],
        created_at_ms=from_datetime(record["created_at"]),
        cycle=_cycle_from(record),
        past_due_since_ms=_optional_ms(record["past_due_since"]),
        billing_alerts=frozenset(record["billing_alerts"]),
        threshold_percents=_percents(tuple(record["threshold_percents"])),
    )


@functools.lru_cache(maxsize=SHARED_TERMS_MAX)
def _percents(found: tuple[int, ...]) -> tuple[int, ...]:
    """Return the one tuple of these percents: nearly every organization has the same."""
    return THRESHOLD_PERCENTS_DEFAULT if found == THRESHOLD_PERCENTS_DEFAULT else found


def _cycle_columns(cycle: Cycle | None) -> Columns:
    if cycle is None:
        return (None,) * 5
    return (
        cycle.subscription_id,
        to_datetime(cycle.start_ms),
        to_datetime(cycle.end_ms),
        to_datetime(cycle.anchor_ms),
        cycle.months,
    )


def _cycle_from(record: Mapping[str, Any]) -> Cycle | None:
    if record["cycle_subscription_id"] is None:
        return None
    return Cycle(
        subscription_id=record["cycle_subscription_id"],
        start_ms=from_datetime(record["cycle_start"]),
        end_ms=from_datetime(record["cycle_end"]),
        anchor_ms=from_datetime(record["cycle_anchor"]),
        months=record["cycle_months"],
    )


# --- periods ------------------------------------------------------------------------------------


def period_id(organization_id: str, period: Period) -> str:
    """Return the id of the period's row: the same however often it is written."""
    return fact_id("per", period.start_ms, organization_id, period.start_ms)


def period_columns(
    organization_id: str, seq: int, period: Period, known: Mapping[int, Terms]
) -> Columns:
    """Return a row of `subscription_usage`; `known` are terms that the store may not have yet."""
    terms = known.get(period.terms_seq)
    return (
        period_id(organization_id, period),
        organization_id,
        period.label,
        to_datetime(period.start_ms),
        to_datetime(period.end_ms),
        period.closed,
        period.terms_seq,
        period.used_ms,
        period.recorded_ms,
        period.overage_minutes,
        period.api_calls,
        period.websocket_ms,
        period.total_usd,
        period.overage_usd,
        round_to_cents(period.total_usd),
        round_to_cents(period.overage_usd),
        None if terms is None else terms.plan.value,
        None if terms is None else terms.limits.included_minutes,
        ",".join(map(str, sorted(period.notified_percents))),
        seq,
    )


def period_from(record: Any) -> Period:
    """Return a period from the columns that load.sql selects, in that order."""
    start, end, label, terms_seq, closed, used_ms, recorded_ms, *rest = record
    overage_minutes, overage, total, api_calls, websocket_ms, notified_percents = rest
    return Period(
        start_ms=from_datetime(start),
        end_ms=from_datetime(end),
        label=label,
        terms_seq=terms_seq,
        closed=closed,
        used_ms=used_ms,
        recorded_ms=recorded_ms,
        overage_minutes=overage_minutes,
        overage_usd=overage,
        total_usd=total,
        api_calls=api_calls,
        websocket_ms=websocket_ms,
        notified_percents=frozenset(
            map(int, notified_percents.split(",") if notified_percents else ())
        ),
    )


# --- tasks --------------------------------------------------------------------------------------


def position_columns(task: Task) -> Columns:
    """Return the columns of `tasks` that change, without the ids before and the seq after."""
    return (
        task.state.value,
        None if task.outcome is None else task.outcome.value,
        to_datetime(task.reported_at_ms),
        to_datetime(task.metered_until_ms),
        None if task.ended_at_ms is None else to_datetime(task.ended_at_ms),
        task.elapsed_ms,
        task.metered_ms,
        task.recorded_ms,
        task.seq,
    )


def started_columns(organization_id: str, task: Task) -> Columns:
    """Return a whole row of `tasks`."""
    info = task.info
    return (
        organization_id,
        info.task_id,
        info.agent_id,
        info.user_id,
        info.metadata_json,
        info.initial_elapsed_ms,
        to_datetime(info.started_at_ms),
        *position_columns(task),
    )


def moved_columns(organization_id: str, task: Task) -> Columns:
    """Return the position of a task that the store knows."""
    return (organization_id, task.info.task_id, *position_columns(task))


def task_from(record: Any) -> Task:
    """Return a task from the columns that load.sql selects, in that order.

    What is not stored starts anew: unreported time counts from the last report, and so does pace.
    """
    task_id, agent_id, user_id, metadata, initial_elapsed_ms, started_at, *position = record
    state, outcome, heartbeat_at, metered_until, ended_at, *counters = position
    elapsed_ms, metered_ms, recorded_ms, seq = counters
    reported_at_ms = from_datetime(heartbeat_at)
    return Task(
        info=TaskInfo(
            task_id=task_id,
            agent_id=agent_id,
            user_id=user_id,
            metadata_json=canonical_json(metadata),
            initial_elapsed_ms=initial_elapsed_ms,
            started_at_ms=from_datetime(started_at),
        ),
        state=TaskState(state),
        outcome=None if outcome is None else TaskOutcome(outcome),
        elapsed_ms=elapsed_ms,
        metered_ms=metered_ms,
        recorded_ms=recorded_ms,
        reported_at_ms=reported_at_ms,
        metered_until_ms=from_datetime(metered_until),
        ended_at_ms=_optional_ms(ended_at),
        burning_from_ms=reported_at_ms,
        pace_from_ms=reported_at_ms,
        pace_elapsed_ms=elapsed_ms,
        seq=seq,
    )


def canonical_json(text: str) -> str:
    """Return the one way meterd writes this JSON: sorted keys, no spaces, plain Unicode."""
    if text == "{}":
        return text
    return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


# --- the rest -----------------------------------------------------------------------------------


def row_columns(organization_id: str, row: UsageRow) -> Columns:
    """Return a row of `usage_records`."""
    return (
        row.id,
        organization_id,
        row.user_id,
        row.resource.value,
        row.quantity,
        row.unit_cost_usd,
        row.total_cost_usd,
        row.metadata_json,
        to_datetime(row.at_ms),
        row.billing_period,
        row.kind.value,
        row.source.value,
        row.quantity_ms,
        row.recorded_before_ms,
        row.task_id,
        row.agent_id,
        row.terms_seq,
        row.seq,
    )


def event_columns(organization_id: str, event: BookedEvent) -> Columns:
    """Return a row of `usage_events`; the rest of an event is in its ledger row."""
    return (
        organization_id,
        event.id,
        event.source,
        event.content,
        event.amount,
        event.record_id,
        event.seq,
    )


def void_columns(organization_id: str, void: EventVoid) -> Columns:
    """Return a row of `usage_event_voids`."""
    return (
        organization_id,
        void.event.id,
        void.event.source,
        void.reason,
        to_datetime(void.at_ms),
        void.record_id,
        void.seq,
    )


def known_event_from(record: Mapping[str, Any]) -> KnownEvent:
    """Return an event from a record that events.sql selects."""
    event = BookedEvent(
        source=record["source"],
        id=record["event_id"],
        content=record["content"],
        resource=Resource(record["resource_type"]),
        amount=record["amount"],
        at_ms=from_datetime(record["timestamp"]),
        billing_period=record["billing_period"],
        unit_cost_usd=record["unit_cost"],
        terms_seq=record["terms_seq"],
        record_id=record["record_id"],
        agent_id=record["agent_id"],
        user_id=record["user_id"],
        seq=record["seq"],
    )
    if record["void_seq"] is None:
        return KnownEvent(event)
    void = EventVoid(
        event=event,
        reason=record["reason"],
        at_ms=from_datetime(record["voided_at"]),
        record_id=record["void_record_id"],
        seq=record["void_seq"],
    )
    return KnownEvent(event, void)


def row_from(record: Mapping[str, Any]) -> UsageRow:
    """Return a ledger row from a record with the columns of `usage_records`."""
    return UsageRow(
        id=record["id"],
        resource=Resource(record["resource_type"]),
        kind=Kind(record["kind"]),
        source=Source(record["source"]),
        quantity=record["quantity"],
        quantity_ms=record["quantity_ms"],
        recorded_before_ms=record["recorded_before_ms"],
        unit_cost_usd=record["unit_cost"],
        total_cost_usd=record["total_cost"],
        billing_period=record["billing_period"],
        at_ms=from_datetime(record["timestamp"]),
        task_id=record["task_id"],
        agent_id=record["agent_id"],
        user_id=record["user_id"],
        terms_seq=record["terms_seq"],
        seq=record["seq"],
        metadata_json=canonical_json(record["metadata"]),
    )


def audit_columns(organization_id: str, audit: AuditEntry) -> Columns:
    """Return a row of `audit_log`."""
    return (
        audit.id,
        organization_id,
        to_datetime(audit.at_ms),
        audit.actor,
        audit.action,
        audit.reason,
        audit.before_json,
        audit.after_json,
    )


def finding_columns(organization_id: str, finding: Finding) -> Columns:
    """Return a row of `findings`."""
    return (
        finding.id,
        organization_id,
        to_datetime(finding.at_ms),
        finding.kind,
        finding.detail_json,
    )


def notification_columns(organization_id: str, told: Notification) -> Columns:
    """Return a row of `notifications`."""
    return (
        told.id,
        organization_id,
        to_datetime(told.at_ms),
        told.kind.value,
        told.data_json,
        told.seq,
    )


def letter_columns(letter: DeadLetter) -> Columns:
    """Return a row of `dead_letters`."""
    return (
        letter.id,
        to_datetime(letter.at_ms),
        letter.address,
        letter.kind,
        letter.error,
        letter.detail_json,
    )


def key_columns(key: StoredKey, digest: bytes) -> Columns:
    """Return a row of `api_keys`."""
    return (
        key.id,
        key.organization_id,
        sorted(key.scopes),
        key.name,
        key.last4,
        to_datetime(key.created_at_ms),
        key.created_by,
        None if key.revoked_at_ms is None else to_datetime(key.revoked_at_ms),
        digest,
    )


def key_from(record: Mapping[str, Any]) -> StoredKey:
    """Return a key from a record with the columns of `api_keys`."""
    return StoredKey(
        id=record["id"],
        organization_id=record["organization_id"],
        scopes=frozenset(record["scopes"]),
        name=record["name"],
        last4=record["last4"],
        created_at_ms=from_datetime(record["created_at"]),
        created_by=record["created_by"],
        revoked_at_ms=_optional_ms(record["revoked_at"]),
    )


def _optional_instant(instant_ms: int | None) -> datetime | None:
    return None if instant_ms is None else to_datetime(instant_ms)


def _optional_ms(instant: datetime | None) -> int | None:
    return None if instant is None else from_datetime(instant)
