"""What answers say: the quota object, tasks and ledger rows of contract §6, as JSON shapes.

Money is text with the decimals of its column, instants are RFC 3339 with `Z`, durations are
integer milliseconds, minutes are whole.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from meterd.core.money import MICRO, round_to_cents
from meterd.core.quota import QuotaView
from meterd.core.task import Task
from meterd.core.units import rfc3339
from meterd.core.usage import UsageRow


Instant = Annotated[
    str, Meta(description="RFC 3339 with `Z`.", extra_json_schema={"format": "date-time"})
]

_instant = lru_cache(maxsize=4_096)(rfc3339)
"""Boundaries of periods are written again and again."""


class AgentMinutes(msgspec.Struct, frozen=True):
    """Use of the period: whole minutes, and milliseconds for those who count themselves."""

    used: Annotated[int, Meta(description="Whole minutes reported.")]
    limit: Annotated[int, Meta(description="Included minutes.")]
    hard_limit: Annotated[int | None, Meta(description="Minutes at which work stops.")]
    remaining: Annotated[int | None, Meta(description="hard_limit - used; null: unlimited.")]
    used_ms: int
    projected_ms: Annotated[
        int, Meta(description="used_ms plus the time since each running task's last report.")
    ]
    overage: Annotated[int, Meta(description="Billed overage minutes.")]


class Agents(msgspec.Struct, frozen=True):
    """Slots: distinct agents that run tasks now."""

    active: int
    limit: int | None


class Quota(msgspec.Struct, frozen=True):
    """The quota object."""

    organization_id: str
    plan: str
    state: str
    allowed: Annotated[bool, Meta(description="Whether a task may start now.")]
    code: Annotated[str | None, Meta(description="Why not.")]
    billing_period: str
    period_start: Instant
    period_end: Instant
    agent_minutes: AgentMinutes
    agents: Agents
    overage_usd: str
    as_of: Instant


class QuotaMessage(Quota, frozen=True, tag="quota"):
    """The quota object as a message of the agent stream."""

    ref: str | int | UnsetType = UNSET


def _quota_fields(view: QuotaView) -> tuple[Any, ...]:
    denial = view.denial
    hard_limit = view.hard_limit_minutes
    used = view.used_minutes
    return (
        view.organization_id,
        view.plan.value,
        view.state.value,
        denial is None,
        None if denial is None else denial.value,
        view.label,
        _instant(view.period_start_ms),
        _instant(view.period_end_ms),
        AgentMinutes(
            used,
            view.included_minutes,
            hard_limit,
            None if hard_limit is None else max(0, hard_limit - used),
            view.used_ms,
            view.projected_ms,
            view.overage_minutes,
        ),
        Agents(view.agents_active, view.agents_limit),
        str(round_to_cents(view.overage_usd)),
        rfc3339(view.as_of_ms),
    )


def quota_object(view: QuotaView) -> Quota:
    """Return the quota object of a view."""
    return Quota(*_quota_fields(view))


def quota_message(view: QuotaView, ref: str | int | UnsetType = UNSET) -> QuotaMessage:
    """Return the quota object as a message."""
    fields: tuple[Any, ...] = (*_quota_fields(view), ref)
    return QuotaMessage(*fields)


class TaskObject(msgspec.Struct, frozen=True, kw_only=True):
    """One execution by an agent."""

    task_id: str
    agent_id: str
    user_id: str | None
    state: str
    outcome: str | None
    started_at: Instant
    last_heartbeat_at: Instant
    finished_at: Instant | None
    elapsed_ms: Annotated[int, Meta(description="Accepted.")]
    metered_ms: Annotated[int, Meta(description="Billed.")]
    unbilled_ms: Annotated[int, Meta(description="Accepted past a hard limit: never billed.")]
    metadata: msgspec.Raw


class FinishedTask(TaskObject, frozen=True, kw_only=True):
    """Answer to a finish: the task as it ended."""

    clamped: Annotated[
        bool | UnsetType,
        Meta(description="True: more time was claimed than has passed, and is not counted."),
    ] = UNSET


def finished_task(task: Task, *, clamped: bool) -> FinishedTask:
    """Return the shape of a task that has ended."""
    return FinishedTask(
        **msgspec.structs.asdict(task_object(task)), clamped=True if clamped else UNSET
    )


def task_object(task: Task) -> TaskObject:
    """Return the shape of a task."""
    info, finished_ms = task.info, task.finished_at_ms
    return TaskObject(
        task_id=info.task_id,
        agent_id=info.agent_id,
        user_id=info.user_id,
        state=task.state.value,
        outcome=None if task.outcome is None else task.outcome.value,
        started_at=rfc3339(info.started_at_ms),
        last_heartbeat_at=rfc3339(task.reported_at_ms),
        finished_at=None if finished_ms is None else rfc3339(finished_ms),
        elapsed_ms=task.elapsed_ms,
        metered_ms=task.metered_ms,
        unbilled_ms=task.unbilled_ms,
        metadata=msgspec.Raw(info.metadata_json.encode()),
    )


class RowObject(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the ledger."""

    id: str
    resource_type: str
    kind: str
    source: str
    quantity: int
    quantity_ms: int
    unit_cost: str
    total_cost: str
    billing_period: str
    timestamp: Annotated[str, Meta(description="The last instant the row covers.")]
    task_id: str | None
    agent_id: str | None
    user_id: str | None
    terms_seq: int
    metadata: msgspec.Raw


def row_object(row: UsageRow) -> RowObject:
    """Return the shape of a ledger row."""
    return RowObject(
        id=row.id,
        resource_type=row.resource.value,
        kind=row.kind.value,
        source=row.source.value,
        quantity=row.quantity,
        quantity_ms=row.quantity_ms,
        unit_cost=str(row.unit_cost_usd.quantize(MICRO)),
        total_cost=str(row.total_cost_usd.quantize(MICRO)),
        billing_period=row.billing_period,
        timestamp=rfc3339(row.at_ms),
        task_id=row.task_id,
        agent_id=row.agent_id,
        user_id=row.user_id,
        terms_seq=row.terms_seq,
        metadata=msgspec.Raw(row.metadata_json.encode()),
    )


class HeartbeatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to a report: what is stored, and whether to go on."""

    task: TaskObject
    quota: Quota
    command: Annotated[str, Meta(description="continue or stop")]
    clamped: Annotated[bool, Meta(description="The report claimed more time than has passed.")]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list."""

    data: list[Any]
    next_cursor: str | None = None
