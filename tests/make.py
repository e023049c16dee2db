"""Builders of what a store writes and reads back; what is not given is plain and valid."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import attrs

from meterd.core.journal import OrganizationBatch, StoredOrganization
from meterd.core.organization import AuditEntry, Finding, Profile
from meterd.core.period import Period, calendar_period
from meterd.core.plan import NO_CONTRACT, Contract, Resource, Terms, Tier, resolve
from meterd.core.task import Task, TaskInfo, TaskState
from meterd.core.units import MINUTE_MS
from meterd.core.usage import Kind, Source, UsageRow
from meterd.ports.directory import NewOrganization
from meterd.ports.keys import StoredKey
from tests.organizations import CATALOGUE


NOW_MS = 1_770_854_400_000
"""2026-02-12T00:00:00Z."""


@attrs.define
class FixedClock:
    """A clock that only tests move."""

    at_ms: int = NOW_MS

    def now_ms(self) -> int:
        """Return the instant it stands at."""
        return self.at_ms


def make_profile(**fields: Any) -> Profile:
    """Return a profile without a customer and without holds."""
    return attrs.evolve(Profile(name="One", created_at_ms=NOW_MS), **fields)


def make_terms(
    plan: Tier = Tier.STARTER,
    contract: Contract = NO_CONTRACT,
    *,
    seq: int = 1,
    trialing: bool = False,
    reason: str = "created",
) -> Terms:
    """Return terms in force since NOW_MS."""
    return Terms(
        seq=seq,
        effective_at_ms=NOW_MS,
        plan=plan,
        contract=contract,
        trialing=trialing,
        limits=resolve(CATALOGUE, plan, contract, trialing=trialing),
        reason=reason,
    )


def make_period(**fields: Any) -> Period:
    """Return the empty open calendar period of NOW_MS."""
    return attrs.evolve(calendar_period(NOW_MS, terms_seq=1), **fields)


def make_task(task_id: str = "task-1", **fields: Any) -> Task:
    """Return a running task's position as a store reads it back; info's fields may be given too."""
    about = {
        name: fields.pop(name)
        for name in ("agent_id", "user_id", "metadata_json", "initial_elapsed_ms", "started_at_ms")
        if name in fields
    }
    info = attrs.evolve(
        TaskInfo(task_id=task_id, agent_id="agent-1", started_at_ms=NOW_MS), **about
    )
    values: dict[str, Any] = {
        "info": info,
        "state": TaskState.RUNNING,
        "outcome": None,
        "elapsed_ms": 0,
        "metered_ms": 0,
        "recorded_ms": 0,
        "reported_at_ms": NOW_MS,
        "metered_until_ms": NOW_MS,
        "ended_at_ms": None,
        "seq": 1,
    }
    values |= fields
    values.setdefault("burning_from_ms", values["reported_at_ms"])
    values.setdefault("pace_from_ms", values["reported_at_ms"])
    values.setdefault("pace_elapsed_ms", values["elapsed_ms"])
    return Task(**values)


def make_row(number: int = 0, **fields: Any) -> UsageRow:
    """Return the period's ledger row with this number: one included minute of task-1."""
    values: dict[str, Any] = {
        "id": f"rec_{number:032x}",
        "resource": Resource.AGENT_MINUTE,
        "kind": Kind.INCLUDED,
        "source": Source.TASK,
        "quantity": 1,
        "quantity_ms": MINUTE_MS,
        "recorded_before_ms": number * MINUTE_MS,
        "unit_cost_usd": Decimal(0),
        "total_cost_usd": Decimal(0),
        "billing_period": "2026-02",
        "at_ms": NOW_MS + number,
        "task_id": "task-1",
        "agent_id": "agent-1",
        "terms_seq": 1,
        "seq": 1,
    }
    return UsageRow(**(values | fields))


def make_audit(**fields: Any) -> AuditEntry:
    """Return an operator's write."""
    values: dict[str, Any] = {
        "id": f"aud_{1:032x}",
        "at_ms": NOW_MS,
        "actor": "key_admin",
        "action": "organization.change",
        "reason": "asked",
        "before_json": "{}",
        "after_json": "{}",
    }
    return AuditEntry(**(values | fields))


def make_finding(**fields: Any) -> Finding:
    """Return something a person should look at."""
    values: dict[str, Any] = {
        "id": f"fnd_{1:032x}",
        "at_ms": NOW_MS,
        "kind": "under_reporting",
        "detail_json": "{}",
    }
    return Finding(**(values | fields))


def make_batch(organization_id: str = "org_1", **fields: Any) -> OrganizationBatch:
    """Return what one transaction writes for an organization: nothing but its position."""
    values: dict[str, Any] = {
        "organization_id": organization_id,
        "seq": 1,
        "rows": (),
        "started": (),
        "moved": (),
        "periods": (),
        "terms": (),
        "profile": None,
        "audits": (),
        "findings": (),
    }
    return OrganizationBatch(**(values | fields))


def make_new(organization_id: str = "org_1", **fields: Any) -> NewOrganization:
    """Return an organization to create."""
    values: dict[str, Any] = {
        "organization_id": organization_id,
        "profile": make_profile(),
        "terms": make_terms(),
        "period": make_period(),
        "created_by": "key_admin",
        "reason": "created",
    }
    return NewOrganization(**(values | fields))


def make_stored(organization_id: str = "org_1", **fields: Any) -> StoredOrganization:
    """Return what is read back of `make_new`, with later changes."""
    values: dict[str, Any] = {
        "organization_id": organization_id,
        "seq": 0,
        "profile": make_profile(),
        "terms": make_terms(),
        "earlier_terms": (),
        "period": make_period(),
        "closed_periods": (),
        "tasks": (),
    }
    return StoredOrganization(**(values | fields))


def make_key(key_id: str = "key_1", **fields: Any) -> StoredKey:
    """Return an agent's key of org_1."""
    values: dict[str, Any] = {
        "id": key_id,
        "organization_id": "org_1",
        "scopes": frozenset({"agent", "read"}),
        "name": "ci",
        "last4": "wxyz",
        "created_at_ms": NOW_MS,
        "created_by": "key_admin",
        "revoked_at_ms": None,
    }
    return StoredKey(**(values | fields))
