"""Between memory and store: what is written in one go, and what is read back.

Facts of one organization that wait for the same flush are coalesced: only the latest position of a
task and the latest totals of a period are written, every ledger row is. Restoring is the inverse:
the stored values, then the facts that are not stored yet, give the state exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from meterd.core.event import BookedEvent, EventVoid
from meterd.core.notification import Notification
from meterd.core.organization import (
    AuditEntry,
    Facts,
    Finding,
    OrganizationState,
    Profile,
    Rules,
    apply,
    put_task,
)
from meterd.core.period import Period
from meterd.core.plan import Terms
from meterd.core.task import Task
from meterd.core.usage import UsageRow


@attrs.frozen(kw_only=True)
class OrganizationBatch:
    """Everything one transaction writes for one organization; writing it twice changes nothing."""

    organization_id: str
    seq: int
    """The last fact in the batch: becomes the actor's durable sequence number."""
    rows: tuple[UsageRow, ...]
    started: tuple[Task, ...]
    """Latest position of tasks that the store has not seen: written whole."""
    moved: tuple[Task, ...]
    """Latest position of tasks that the store knows."""
    periods: tuple[Period, ...]
    terms: tuple[Terms, ...]
    profile: Profile | None
    audits: tuple[AuditEntry, ...]
    findings: tuple[Finding, ...]
    notifications: tuple[Notification, ...] = ()
    events: tuple[BookedEvent, ...] = ()
    voids: tuple[EventVoid, ...] = ()


def coalesce(organization_id: str, facts: Sequence[Facts]) -> OrganizationBatch:
    """Return the batch that makes these consecutive facts of one organization durable."""
    assert facts, "nothing to coalesce"
    tasks: dict[str, Task] = {}
    started: set[str] = set()
    periods: dict[int, Period] = {}
    profile: Profile | None = None
    for fact in facts:
        tasks.update((task.info.task_id, task) for task in fact.tasks)
        started |= fact.started
        periods.update((period.start_ms, period) for period in fact.periods)
        profile = fact.profile or profile
    return OrganizationBatch(
        organization_id=organization_id,
        seq=facts[-1].seq,
        rows=tuple(row for fact in facts for row in fact.rows),
        started=tuple(task for task_id, task in tasks.items() if task_id in started),
        moved=tuple(task for task_id, task in tasks.items() if task_id not in started),
        periods=tuple(periods[start_ms] for start_ms in sorted(periods)),
        terms=tuple(fact.terms for fact in facts if fact.terms is not None),
        profile=profile,
        audits=tuple(fact.audit for fact in facts if fact.audit is not None),
        findings=tuple(finding for fact in facts for finding in fact.findings),
        notifications=tuple(told for fact in facts for told in fact.notifications),
        events=tuple(event for fact in facts for event in fact.events),
        voids=tuple(void for fact in facts for void in fact.voids),
    )


@attrs.frozen(kw_only=True)
class StoredOrganization:
    """An organization as the store has it, up to and including fact `seq`."""

    organization_id: str
    seq: int
    profile: Profile
    terms: Terms
    earlier_terms: tuple[Terms, ...]
    """Terms that the closed periods below refer to."""
    period: Period
    """The open period."""
    closed_periods: tuple[Period, ...]
    """Newest first; at least those that ended within 36 days."""
    tasks: tuple[Task, ...]
    """Running ones, and lost ones that may still report."""


def restore(
    stored: StoredOrganization,
    pending: Iterable[Facts],
    *,
    rules: Rules,
    serving_since_ms: int,
    now_ms: int,
    last_seq: int = 0,
) -> OrganizationState:
    """Return the live state: what is stored, then the facts that are not stored yet.

    A running task is given a fresh time-out after a start, and its unreported time counts as use:
    a crash may refuse too much, never grant too much. A report that lies in the future was written
    by a clock that has been set right since: it counts as made now, or its task would hold its
    slot until that clock is right. `last_seq` is the highest number this
    process has given out, facts that the store rejected included: numbers are never used twice.
    """
    state = OrganizationState(
        organization_id=stored.organization_id,
        rules=rules,
        profile=stored.profile,
        terms=stored.terms,
        earlier_terms={terms.seq: terms for terms in stored.earlier_terms},
        period=stored.period,
        closed_periods=stored.closed_periods,
        serving_since_ms=serving_since_ms,
        seq=stored.seq,
    )
    for task in sorted(stored.tasks, key=lambda task: task.reported_at_ms):
        burning_from_ms = max(task.reported_at_ms, stored.period.start_ms)
        put_task(
            state,
            attrs.evolve(
                task,
                reported_at_ms=min(task.reported_at_ms, now_ms),
                burning_from_ms=min(burning_from_ms, now_ms),
                pace_from_ms=now_ms,
                pace_elapsed_ms=task.elapsed_ms,
            ),
        )
    for facts in pending:
        apply(state, facts)
    state.seq = max(state.seq, last_seq)
    return state
