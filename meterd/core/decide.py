"""Decide: the one function that says what a command does to an organization.

`decide(state, command, now)` is pure: it returns what to answer, the facts to remember and whom to
tell, and changes nothing. The same function serves the live actor, replay and simulation.

Whoever calls it lets time pass first: when `quota.is_due` says so, decide a `Tick` and commit it,
then decide the command. So every command sees a period that is open and no silent task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice, takewhile
from typing import assert_never

import attrs

from meterd.core.commands import (
    Adjust,
    Adjusted,
    Audited,
    Beat,
    ChangeOrganization,
    ChangeSettings,
    Command,
    CreditExceedsUsage,
    Decision,
    Denied,
    Done,
    ExceedsHardLimit,
    ExceedsOverageCap,
    Finished,
    FinishTask,
    FollowSubscription,
    Heartbeat,
    Heartbeats,
    NeedsPeriod,
    NeedsTask,
    PeriodUnknown,
    PlanManagedByStripe,
    ProfileChanged,
    QuotaChanged,
    Recalled,
    RecordEvents,
    Started,
    StartTask,
    TaskClosed,
    TaskConflict,
    TaskLost,
    TaskUnknown,
    Tick,
    VoidEvent,
)
from meterd.core.following import enact_terms, expire_payment_grace, follow, turn_period
from meterd.core.heartbeat import decide_at_once, decide_together
from meterd.core.ids import fact_id
from meterd.core.metering import Draft
from meterd.core.notification import NotificationKind
from meterd.core.organization import AuditEntry, DenialReason, OrganizationState, Profile, apply
from meterd.core.period import Period
from meterd.core.plan import UNSET, Terms, contract_fields, resolve
from meterd.core.quota import denial, overage_cap_line_ms, running_denial, slot_denial
from meterd.core.recording import record_events, void_event
from meterd.core.settings import change_settings
from meterd.core.task import (
    LOST_AT_ZERO_MAX,
    LOST_AT_ZERO_WINDOW_MS,
    LOST_REPORTS_MS,
    PACE_PERCENT_MIN,
    PACE_WINDOW_MS,
    Plausibility,
    Task,
    TaskInfo,
    TaskState,
    accepted_elapsed_ms,
    is_same_start,
    plausible_elapsed_ms,
)
from meterd.core.units import rfc3339


def decide(state: OrganizationState, command: Command, now_ms: int) -> Decision:
    """Return outcome, facts and notices of a command; the state is not changed."""
    match command:
        case Heartbeat():
            return _heartbeat(state, command, now_ms)
        case Heartbeats(reports=reports):
            return decide_together(state, reports, now_ms)
        case StartTask():
            return _start(state, command, now_ms)
        case FinishTask():
            return _finish(state, command, now_ms)
        case Tick():
            return _tick(state, now_ms)
        case ChangeOrganization() | ChangeSettings() | Adjust():
            return _administer(state, command, now_ms)
        case FollowSubscription():
            return follow(state, command, now_ms)
        case RecordEvents():
            return record_events(state, command, now_ms)
        case VoidEvent():
            return void_event(state, command, now_ms)
        case _:
            assert_never(command)


def commit(state: OrganizationState, decision: Decision) -> None:
    """Apply a decision's facts and remember what was announced."""
    if decision.facts is not None:
        apply(state, decision.facts)
    for notice in decision.notices:
        if isinstance(notice, QuotaChanged):
            state.announced, state.announced_stop = notice.state, notice.stop


# --- time ---------------------------------------------------------------------------------------


def _tick(state: OrganizationState, now_ms: int) -> Decision:
    draft = Draft(state, now_ms)
    while now_ms >= draft.period.end_ms:
        turn_period(draft, draft.period.end_ms)
    expire_payment_grace(draft)
    _lose_silent_tasks(draft)
    return draft.conclude(Done())


def _lose_silent_tasks(draft: Draft) -> None:
    state, now_ms = draft.state, draft.now_ms

    def is_silent(task: Task) -> bool:
        heard_ms = max(task.reported_at_ms, state.serving_since_ms)
        return now_ms >= heard_ms + state.rules.task_timeout_ms

    # Longest silent first: a thousand others cost nothing when one is lost.
    for task in list(takewhile(is_silent, draft.running())):
        task_id = task.info.task_id
        draft.record(task_id)
        draft.put(attrs.evolve(draft.task(task_id), state=TaskState.LOST, ended_at_ms=now_ms))
        draft.notices.append(TaskLost(task_id=task_id))
        draft.notify(
            NotificationKind.TASK_LOST,
            task_id=task_id,
            agent_id=task.info.agent_id,
            elapsed_ms=task.elapsed_ms,
            last_heartbeat_at=rfc3339(task.reported_at_ms),
        )
    lost_at_zero = [task for task in draft.tasks.values() if _is_lost_at_zero(task)]
    if lost_at_zero:
        _report_lost_at_zero(draft, lost_at_zero)


def _is_lost_at_zero(task: Task) -> bool:
    return task.state is TaskState.LOST and task.elapsed_ms == 0


def _report_lost_at_zero(draft: Draft, tasks: list[Task]) -> None:
    """More than three tasks an hour that never reported: an agent may be hiding its time."""
    since_ms = draft.now_ms - LOST_AT_ZERO_WINDOW_MS
    latest = (draft.state.ended[task_id] for task_id in reversed(draft.state.lost))
    earlier = (
        task
        for task in takewhile(lambda task: (task.ended_at_ms or 0) > since_ms, latest)
        if _is_lost_at_zero(task)
    )
    # Told is told: beyond the bound, how many more there were does not matter.
    before = len(list(islice(earlier, LOST_AT_ZERO_MAX + 1)))
    count = before + len(tasks)
    if before <= LOST_AT_ZERO_MAX < count:
        detail = {"lost_at_zero": count, "agent_ids": sorted({t.info.agent_id for t in tasks})[:20]}
        draft.find("tasks_lost_at_zero", _json(detail))


# --- tasks --------------------------------------------------------------------------------------


def _known(state: OrganizationState, task_id: str, recalled: Recalled | None) -> Task | None:
    """Return the task from memory, else what the store said of it."""
    return state.task(task_id) or (recalled.task if recalled is not None else None)


def _start(state: OrganizationState, command: StartTask, now_ms: int) -> Decision:
    info = command.info
    known = _known(state, info.task_id, command.recalled)
    if known is not None:
        if is_same_start(known.info, info):
            return Decision(Started(task=known, repeated=True, closed=_is_closed(known, now_ms)))
        return Decision(TaskConflict())
    if command.recalled is None:
        return Decision(NeedsTask(task_id=info.task_id))
    reason = denial(state, info.agent_id, now_ms)
    if reason is not None:
        return Decision(Denied(reason=reason))
    draft = Draft(state, now_ms)
    admitted = attrs.evolve(info, started_at_ms=now_ms)
    draft.started.add(info.task_id)
    draft.put(_new_task(admitted, now_ms, draft.seq))
    if info.initial_elapsed_ms:
        draft.meter(info.task_id, info.initial_elapsed_ms)
    return draft.conclude(Started(task=draft.task(info.task_id)))


def _new_task(info: TaskInfo, now_ms: int, seq: int) -> Task:
    return Task(
        info=info,
        state=TaskState.RUNNING,
        outcome=None,
        elapsed_ms=info.initial_elapsed_ms,
        metered_ms=0,
        recorded_ms=0,
        reported_at_ms=now_ms,
        metered_until_ms=now_ms,
        ended_at_ms=None,
        burning_from_ms=now_ms,
        pace_from_ms=now_ms,
        pace_elapsed_ms=info.initial_elapsed_ms,
        seq=seq,
    )


def _heartbeat(state: OrganizationState, command: Heartbeat, now_ms: int) -> Decision:
    known = state.running.get(command.task_id)
    if known is not None:
        decision = decide_at_once(state, known, command.elapsed_ms, now_ms)
        if decision is not None:
            return decision
    return _heartbeat_in_full(state, command, now_ms)


def _heartbeat_in_full(state: OrganizationState, command: Heartbeat, now_ms: int) -> Decision:
    known = _known(state, command.task_id, command.recalled)
    if known is None:
        return Decision(_absent(command.task_id, command.recalled))
    if known.state is TaskState.FINISHED:
        return Decision(Beat(known, running_denial(state, now_ms), clamped=False, finished=True))
    if _is_closed(known, now_ms):
        return Decision(TaskClosed())
    draft = Draft(state, now_ms)
    clamped = _take_report(draft, known, command.elapsed_ms)
    stop = draft.stop_reason()  # after the report: it may stop the task, or show there is room
    if known.state is TaskState.LOST:
        draft.record(command.task_id)
        stop = stop or _resume(draft, command.task_id)
    return draft.conclude(Beat(draft.task(command.task_id), stop, clamped))


def _absent(task_id: str, recalled: Recalled | None) -> NeedsTask | TaskUnknown:
    return NeedsTask(task_id=task_id) if recalled is None else TaskUnknown()


def _is_closed(task: Task, now_ms: int) -> bool:
    is_lost = task.state is TaskState.LOST
    return is_lost and now_ms >= (task.ended_at_ms or 0) + LOST_REPORTS_MS


def _take_report(draft: Draft, task: Task, claimed_ms: int) -> bool:
    """Move a task to its reported time and meter the difference; return whether it was clamped."""
    rules, now_ms = draft.state.rules, draft.now_ms
    slowed_ms = draft.state.slowing.since(task.info.started_at_ms)
    plausible_ms = accepted_elapsed_ms(task, claimed_ms, now_ms, slowed_ms)
    clamped = claimed_ms > plausible_ms and rules.plausibility is Plausibility.ENFORCE
    if claimed_ms > plausible_ms and _is_first_implausible(task, rules.plausibility, slowed_ms):
        detail = {
            "task_id": task.info.task_id,
            "claimed_ms": claimed_ms,
            "plausible_ms": plausible_ms,
        }
        draft.find("implausible_report", _json(detail))
    elapsed_ms = plausible_ms if clamped else max(task.elapsed_ms, claimed_ms)
    pace_from_ms, pace_elapsed_ms = task.pace_from_ms, task.pace_elapsed_ms
    observed_ms = now_ms - pace_from_ms
    if observed_ms >= PACE_WINDOW_MS:
        reported_ms = elapsed_ms - pace_elapsed_ms
        if reported_ms * 100 < observed_ms * PACE_PERCENT_MIN:
            detail = {
                "task_id": task.info.task_id,
                "agent_id": task.info.agent_id,
                "reported_ms": reported_ms,
                "observed_ms": observed_ms,
            }
            draft.find("under_reporting", _json(detail))
        pace_from_ms, pace_elapsed_ms = now_ms, elapsed_ms
    draft.put(
        Task(
            info=task.info,
            state=task.state,
            outcome=task.outcome,
            elapsed_ms=elapsed_ms,
            metered_ms=task.metered_ms,
            recorded_ms=task.recorded_ms,
            reported_at_ms=now_ms,
            metered_until_ms=task.metered_until_ms,
            ended_at_ms=task.ended_at_ms,
            burning_from_ms=now_ms,
            pace_from_ms=pace_from_ms,
            pace_elapsed_ms=pace_elapsed_ms,
            seq=draft.seq,
        )
    )
    if elapsed_ms > task.elapsed_ms:
        draft.meter(task.info.task_id, elapsed_ms - task.elapsed_ms)
    return clamped


def _is_first_implausible(task: Task, plausibility: Plausibility, slowed_ms: int) -> bool:
    """Tell whether to report a claim: when a task begins to run ahead, not at every heartbeat."""
    possible_ms = plausible_elapsed_ms(task.info, task.reported_at_ms, slowed_ms)
    return plausibility is Plausibility.REPORT and task.elapsed_ms <= possible_ms


def _resume(draft: Draft, task_id: str) -> DenialReason | None:
    """Let a lost task run again if a slot is free; return why not otherwise."""
    task = draft.task(task_id)
    reason = slot_denial(draft.state, task.info.agent_id)
    if reason is None:
        draft.put(attrs.evolve(task, state=TaskState.RUNNING, ended_at_ms=None))
    return reason


def _finish(state: OrganizationState, command: FinishTask, now_ms: int) -> Decision:
    known = _known(state, command.task_id, command.recalled)
    if known is None:
        return Decision(_absent(command.task_id, command.recalled))
    if known.state is TaskState.FINISHED:
        return Decision(Finished(task=known, clamped=_was_clamped(state, known, command)))
    if _is_closed(known, now_ms):
        return Decision(TaskClosed())
    draft = Draft(state, now_ms)
    clamped = _take_report(draft, known, command.elapsed_ms)
    draft.record(command.task_id)
    ended = attrs.evolve(
        draft.task(command.task_id),
        state=TaskState.FINISHED,
        outcome=command.outcome,
        ended_at_ms=now_ms,
    )
    draft.put(ended)
    return draft.conclude(Finished(task=ended, clamped=clamped))


def _was_clamped(state: OrganizationState, ended: Task, again: FinishTask) -> bool:
    """Tell whether the claim of a repeated finish was too much when the task ended."""
    assert ended.ended_at_ms is not None, ended.task_id
    plausible_ms = plausible_elapsed_ms(ended.info, ended.ended_at_ms)
    is_enforced = state.rules.plausibility is Plausibility.ENFORCE
    return is_enforced and again.elapsed_ms > max(ended.elapsed_ms, plausible_ms)


# --- administration -----------------------------------------------------------------------------


def _administer(
    state: OrganizationState, command: ChangeOrganization | ChangeSettings | Adjust, now_ms: int
) -> Decision:
    match command:
        case ChangeOrganization():
            return _change(state, command, now_ms)
        case ChangeSettings():
            return change_settings(state, command, now_ms)
        case Adjust():
            return _adjust(state, command, now_ms)
        case _:
            assert_never(command)


def _change(state: OrganizationState, command: ChangeOrganization, now_ms: int) -> Decision:
    is_managed = state.profile.cycle is not None
    if is_managed and command.plan not in (None, state.terms.plan):
        return Decision(PlanManagedByStripe())
    draft = Draft(state, now_ms)
    terms = _changed_terms(state, command, now_ms)
    enact_terms(draft, terms)
    if terms is not state.terms:
        draft.notify(NotificationKind.SUBSCRIPTION_UPDATED, previous_plan=state.terms.plan.value)
    profile = _changed_profile(state.profile, command)
    if profile != state.profile:
        draft.profile = profile
        draft.notices.append(ProfileChanged(profile=profile))
    elif terms is state.terms:
        return Decision(Done())
    draft.audit = _audit_entry(
        draft,
        "organization.change",
        command.audited,
        before=_describe(state.terms, state.profile),
        after=_describe(terms, profile),
    )
    return draft.conclude(Done())


def _changed_terms(state: OrganizationState, command: ChangeOrganization, now_ms: int) -> Terms:
    """Return the terms the command asks for: the ones in force when nothing differs."""
    old = state.terms
    plan = old.plan if command.plan is None else command.plan
    contract = old.contract if command.contract is None else command.contract
    trialing = old.trialing if command.trialing is None else command.trialing
    cap_usd = old.limits.overage_cap_usd
    limits = resolve(
        state.rules.catalogue, plan, contract, trialing=trialing, overage_cap_usd=cap_usd
    )
    asked = (plan, contract, trialing, limits)
    if asked == (old.plan, old.contract, old.trialing, old.limits):
        return old
    return Terms(
        seq=old.seq + 1,
        effective_at_ms=now_ms,
        plan=plan,
        contract=contract,
        trialing=trialing,
        limits=limits,
        reason=command.audited.reason,
    )


def _changed_profile(old: Profile, command: ChangeOrganization) -> Profile:
    holds, reason = old.holds, old.hold_reason
    if command.place is not None:
        holds, reason = holds | {command.place}, command.audited.reason
    if command.lift is not None:
        holds = holds - {command.lift}
    customer_id = command.stripe_customer_id
    return attrs.evolve(
        old,
        name=old.name if command.name is None else command.name,
        stripe_customer_id=old.stripe_customer_id if customer_id is UNSET else customer_id,
        holds=holds,
        hold_reason=reason if holds else None,
    )


def _adjust(state: OrganizationState, command: Adjust, now_ms: int) -> Decision:
    found = _adjusted_period(state, command)
    if found is None:
        is_recalled = command.recalled is not None
        return Decision(PeriodUnknown() if is_recalled else NeedsPeriod(label=command.label or ""))
    period, terms = found
    used_ms, hard_ms = period.used_ms, terms.limits.hard_limit_ms
    if used_ms + command.agent_ms < 0:
        return Decision(CreditExceedsUsage(used_ms=used_ms))
    if command.agent_ms > 0 and hard_ms is not None and used_ms + command.agent_ms > hard_ms:
        return Decision(ExceedsHardLimit(room_ms=max(0, hard_ms - used_ms)))
    draft = Draft(state, now_ms)
    if not period.closed:
        draft.record_all()
        period = draft.period
    cap_ms = overage_cap_line_ms(terms.limits, period)
    if command.agent_ms > 0 and cap_ms is not None and used_ms + command.agent_ms > cap_ms:
        return Decision(ExceedsOverageCap(room_ms=max(0, cap_ms - used_ms)))
    first = len(draft.rows)  # before it: rows of tasks, recorded under the total so far
    draft.adjust(period, terms, command.agent_ms, _json({"reason": command.audited.reason}))
    draft.audit = _audit_entry(
        draft,
        "organization.adjust",
        command.audited,
        before={"billing_period": period.label, "used_ms": used_ms},
        after={
            "billing_period": period.label,
            "rows": [row.id for row in draft.rows[first:]],
            "used_ms": used_ms + command.agent_ms,
        },
    )
    return draft.conclude(Adjusted(rows=tuple(draft.rows[first:])))


def _adjusted_period(state: OrganizationState, command: Adjust) -> tuple[Period, Terms] | None:
    """Return the period to adjust and its terms, or None when it is not in memory."""
    for period in (state.period, *state.closed_periods):
        if command.label is None or period.label == command.label:
            return period, state.terms_of(period)
    return command.recalled.found if command.recalled is not None else None


def _audit_entry(
    draft: Draft,
    action: str,
    audited: Audited,
    *,
    before: Mapping[str, object],
    after: Mapping[str, object],
) -> AuditEntry:
    return AuditEntry(
        id=audited.entry_id or fact_id("aud", draft.now_ms, draft.state.organization_id, draft.seq),
        at_ms=draft.now_ms,
        actor=audited.actor,
        action=action,
        reason=audited.reason,
        before_json=_json(before),
        after_json=_json(after),
    )


def _describe(terms: Terms, profile: Profile) -> dict[str, object]:
    """Return what an operator can change, as it is written to the audit log."""
    return {
        "name": profile.name,
        "stripe_customer_id": profile.stripe_customer_id,
        "holds": sorted(hold.value for hold in profile.holds),
        "plan": terms.plan.value,
        "contract": contract_fields(terms.contract),
        "trialing": terms.trialing,
        "terms_seq": terms.seq,
    }


def _json(fields: Mapping[str, object]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))
