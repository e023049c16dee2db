"""What answers to operators say of organizations, actors, people and the trail.

As in `meterd.web.shapes`; the OpenAPI document is made from these. What looks like a secret in
words that errors brought is masked here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from meterd.actors.inspection import ActorView
from meterd.actors.organizations import OrganizationSnapshot
from meterd.actors.supervisor import Failure
from meterd.actors.trace import TraceEntry
from meterd.core.money import MICRO
from meterd.core.organization import Profile
from meterd.core.plan import Limits, Terms, contract_fields
from meterd.core.units import rfc3339, whole_minutes
from meterd.observe.log import masked
from meterd.ports.trail import AuditRecord, DeadLetter
from meterd.web.shapes import Instant, Quota, quota_object


CENT = Decimal("0.01")


class ContractObject(msgspec.Struct, frozen=True, kw_only=True):
    """What was agreed with one organization: the fields that overlay its plan's."""

    agents: int | UnsetType | None = UNSET
    agent_minutes: int | UnsetType = UNSET
    grace_percent: int | UnsetType = UNSET
    overage_usd_per_minute: str | UnsetType = UNSET
    base_price_usd: str | UnsetType = UNSET
    new_tasks_in_grace: bool | UnsetType = UNSET


class LimitsObject(msgspec.Struct, frozen=True, kw_only=True):
    """What plan and contract come to."""

    agents: Annotated[int | None, Meta(description="At once; null: unlimited.")]
    agent_minutes: Annotated[int, Meta(description="Included in a period.")]
    hard_limit_minutes: Annotated[int | None, Meta(description="Where work stops; null: never.")]
    overage_usd_per_minute: str
    base_price_usd: str
    new_tasks_in_grace: bool
    overage_cap_usd: Annotated[str | None, Meta(description="The organization's own.")]


class OrganizationObject(msgspec.Struct, frozen=True, kw_only=True):
    """An organization as stored."""

    id: str
    name: str
    plan: str
    contract: ContractObject
    limits: LimitsObject
    trialing: bool
    terms_seq: Annotated[int, Meta(description="Counts the changes of plan, contract and prices.")]
    stripe_customer_id: str | None
    suspended: bool
    holds: Annotated[list[str], Meta(description="operator, payment")]
    hold_reason: str | None
    created_at: Instant


class LiveOrganization(OrganizationObject, frozen=True, kw_only=True):
    """An organization as its actor knows it."""

    running_tasks: int
    quota: Quota


def _organization_fields(organization_id: str, profile: Profile, terms: Terms) -> dict[str, Any]:
    fields: dict[str, Any] = contract_fields(terms.contract)
    return {
        "id": organization_id,
        "name": profile.name,
        "plan": terms.plan.value,
        "contract": ContractObject(**fields),
        "limits": _limits_object(terms.limits),
        "trialing": terms.trialing,
        "terms_seq": terms.seq,
        "stripe_customer_id": profile.stripe_customer_id,
        "suspended": bool(profile.holds),
        "holds": sorted(hold.value for hold in profile.holds),
        "hold_reason": profile.hold_reason,
        "created_at": rfc3339(profile.created_at_ms),
    }


def organization_object(organization_id: str, profile: Profile, terms: Terms) -> OrganizationObject:
    """Return the shape of an organization."""
    return OrganizationObject(**_organization_fields(organization_id, profile, terms))


def live_organization(organization_id: str, snapshot: OrganizationSnapshot) -> LiveOrganization:
    """Return the shape of an organization with its quota."""
    return LiveOrganization(
        **_organization_fields(organization_id, snapshot.profile, snapshot.terms),
        running_tasks=snapshot.running_tasks,
        quota=quota_object(snapshot.quota),
    )


def _limits_object(limits: Limits) -> LimitsObject:
    hard_ms, cap_usd = limits.hard_limit_ms, limits.overage_cap_usd
    return LimitsObject(
        agents=limits.agents,
        agent_minutes=limits.included_minutes,
        hard_limit_minutes=None if hard_ms is None else whole_minutes(hard_ms),
        overage_usd_per_minute=str(limits.overage_usd_per_minute.quantize(MICRO)),
        base_price_usd=str(limits.base_price_usd.quantize(CENT)),
        new_tasks_in_grace=limits.new_tasks_in_grace,
        overage_cap_usd=None if cap_usd is None else str(cap_usd.quantize(CENT)),
    )


# --- actors ---------------------------------------------------------------------------------------


class Mailbox(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for an actor."""

    depth: int
    peak: int


class ActorObject(msgspec.Struct, frozen=True, kw_only=True):
    """An actor at one instant."""

    address: str
    kind: Annotated[str, Meta(description="organization or service")]
    phase: Annotated[str, Meta(description="ready, loading, backing_off, suspended or quarantined")]
    mailbox: Mailbox
    processed: Annotated[int, Meta(description="Messages since the actor came into memory.")]
    rate_per_s: int
    strikes: Annotated[int, Meta(description="Crashes that still count against it.")]
    restarts: int
    last_error: str | None
    idle_ms: int
    age_ms: Annotated[int, Meta(description="Since it was last read from the store.")]
    unflushed: Annotated[int, Meta(description="Facts that wait for their commit.")]
    traced: bool
    state: Annotated[Mapping[str, Any], Meta(description="Figures of this kind of actor.")]


class HandledActor(ActorObject, frozen=True, kw_only=True):
    """An actor after a hand was laid on it."""

    in_memory: Annotated[bool, Meta(description="False: this is how it was before.")]


def _actor_fields(actor: ActorView) -> dict[str, Any]:
    return {
        "address": actor.address,
        "kind": actor.kind,
        "phase": actor.phase,
        "mailbox": Mailbox(depth=actor.mailbox_depth, peak=actor.mailbox_peak),
        "processed": actor.processed,
        "rate_per_s": actor.rate_per_s,
        "strikes": actor.strikes,
        "restarts": actor.restarts,
        "last_error": None if actor.last_error is None else masked(actor.last_error),
        "idle_ms": actor.idle_ms,
        "age_ms": actor.age_ms,
        "unflushed": actor.unflushed,
        "traced": actor.is_traced,
        "state": actor.state,
    }


def actor_object(actor: ActorView) -> ActorObject:
    """Return the shape of an actor (contract §11)."""
    return ActorObject(**_actor_fields(actor))


def handled_actor(after: ActorView | None, before: ActorView) -> HandledActor:
    """Return the shape of an actor that was handled; `after` is None when it left memory."""
    return HandledActor(**_actor_fields(after or before), in_memory=after is not None)


class TraceMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a trace."""

    number: int
    at: Instant
    message: str
    outcome: str
    skipped: Annotated[int, Meta(description="Messages before it that were not written down.")]


class LiveTraceMessage(TraceMessage, frozen=True, kw_only=True, tag="message"):
    """One message of a trace as it happens."""


def _trace_fields(entry: TraceEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "at": rfc3339(entry.at_ms),
        "message": masked(entry.message),
        "outcome": masked(entry.outcome),
        "skipped": entry.skipped,
    }


def trace_message(entry: TraceEntry) -> TraceMessage:
    """Return one message of a trace."""
    return TraceMessage(**_trace_fields(entry))


def live_trace_message(entry: TraceEntry) -> LiveTraceMessage:
    """Return one message of a trace for those who watch."""
    return LiveTraceMessage(**_trace_fields(entry))


# --- trail ----------------------------------------------------------------------------------------


class AuditObject(msgspec.Struct, frozen=True, kw_only=True):
    """Who changed what, and why."""

    id: str
    at: Instant
    actor: Annotated[str, Meta(description="The id of the key that asked, or a name of ours.")]
    action: str
    organization_id: str | None
    reason: str
    before: dict[str, Any]
    after: dict[str, Any]


def audit_object(record: AuditRecord) -> AuditObject:
    """Return an entry of the audit log."""
    return AuditObject(
        id=record.id,
        at=rfc3339(record.at_ms),
        actor=record.actor,
        action=record.action,
        organization_id=record.organization_id,
        reason=record.reason,
        before=json.loads(record.before_json),
        after=json.loads(record.after_json),
    )


class DeadLetterObject(msgspec.Struct, frozen=True, kw_only=True):
    """A message or facts that were set aside."""

    id: str
    at: Instant
    address: str
    kind: Annotated[str, Meta(description="message or facts")]
    error: str
    detail: dict[str, Any]


def dead_letter_object(letter: DeadLetter) -> DeadLetterObject:
    """Return a dead letter."""
    return DeadLetterObject(
        id=letter.id,
        at=rfc3339(letter.at_ms),
        address=letter.address,
        kind=letter.kind,
        error=masked(letter.error),
        detail=json.loads(letter.detail_json),
    )


class CrashObject(msgspec.Struct, frozen=True, kw_only=True):
    """A crash of an actor."""

    at: Instant
    address: str
    error: str
    where: str


def crash_object(crash: Failure) -> CrashObject:
    """Return a crash."""
    return CrashObject(
        at=rfc3339(crash.at_ms),
        address=crash.address,
        error=masked(crash.error),
        where=crash.where,
    )


# --- people ---------------------------------------------------------------------------------------


class HeldTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task on a person's behalf."""

    task_id: str
    agent_id: str
    state: str
    outcome: str | None
    started_at: Instant
    ended_at: Instant | None
    elapsed_ms: int
    metered_ms: int
    metadata: dict[str, Any]


class HeldRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the ledger with a person's id."""

    id: str
    resource_type: str
    kind: str
    quantity: int
    quantity_ms: int
    unit_cost: str
    total_cost: str
    billing_period: str
    timestamp: Instant
    task_id: str | None
    agent_id: str | None
    metadata: dict[str, Any]


class HeldKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that a person made."""

    id: str
    name: str
    last4: str
    created_at: Instant
    revoked_at: Instant | None


class HeldEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook endpoint that a person made."""

    id: str
    url: str
    description: str
    created_at: Instant
    disabled_at: Instant | None


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Everything stored under a person's id."""

    user_id: str
    tasks: list[HeldTask]
    records: list[HeldRow]
    keys: list[HeldKey]
    endpoints: list[HeldEndpoint]


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a person's place now, and where."""

    pseudonym: str
    records: int
    tasks: int
