"""What an organization may do now: projected use, limits, states and verdicts.

Rule 1: everything that refuses work is in this file; the reasons are checked in the order in
        which `DenialReason` declares them.
Rule 2: decisions, states and timers look at projected use (reported + time since each running
        task's last report); the bill looks at reported use only.
Rule 3: nothing here changes a state; every function is O(1), whatever the number of tasks,
        except that tasks silent since before a start are counted one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal

import attrs

from meterd.core.organization import DenialReason, Hold, OrganizationState, QuotaState
from meterd.core.period import Period
from meterd.core.plan import Limits, Tier
from meterd.core.units import MINUTE_MS, ceil_div, whole_minutes


WARNING_PERCENT = 80
FULL_PERCENT = 100
HARD_PERCENT = 110
"""Names the hard limit itself, whatever grace the plan grants."""

STATE_PERCENTS = (WARNING_PERCENT, FULL_PERCENT, HARD_PERCENT)
"""Where the quota state changes, whatever thresholds an organization has chosen."""

STOPPED_MARK = 0
"""Among a period's notified percents: a limit was reached and told, and is not over yet."""


@attrs.frozen(kw_only=True)
class QuotaView:
    """The quota object at one instant: what callers are shown and headers are made from."""

    organization_id: str
    plan: Tier
    state: QuotaState
    denial: DenialReason | None
    """Why a new agent would be refused; `None`: it would be admitted."""
    hold: Hold | None
    label: str
    period_start_ms: int
    period_end_ms: int
    used_ms: int
    projected_ms: int
    included_minutes: int
    hard_limit_ms: int | None
    overage_minutes: int
    overage_usd: Decimal
    agents_active: int
    agents_limit: int | None
    as_of_ms: int

    @property
    def used_minutes(self) -> int:
        """Return the whole minutes reported."""
        return whole_minutes(self.used_ms)

    @property
    def hard_limit_minutes(self) -> int | None:
        """Return the whole minutes at which work stops; `None`: never."""
        return None if self.hard_limit_ms is None else whole_minutes(self.hard_limit_ms)

    @property
    def remaining_minutes(self) -> int | None:
        """Return hard limit - used, never negative; `None`: unlimited."""
        hard = self.hard_limit_minutes
        return None if hard is None else max(0, hard - self.used_minutes)

    @property
    def remaining_ms(self) -> int | None:
        """Return the time left to the hard limit, never negative; `None`: unlimited."""
        return None if self.hard_limit_ms is None else max(0, self.hard_limit_ms - self.used_ms)


def projected_ms(state: OrganizationState, now_ms: int) -> int:
    """Return used time plus, for each running task, the time since its last report.

    That time is at most the time-out. A task is lost when it reaches it, so only right after a
    start, when silence is forgiven, is any task looked at one by one.
    """
    projected = state.period.used_ms + len(state.running) * now_ms - state.burning_from_sum_ms
    capped_from_ms = now_ms - state.rules.task_timeout_ms
    for task in state.running.values():  # longest silent first
        if task.burning_from_ms >= capped_from_ms:
            break
        projected -= capped_from_ms - task.burning_from_ms
    return projected


def burning_tasks(state: OrganizationState, now_ms: int) -> int:
    """Return how many running tasks add to projected use as time passes."""
    capped_from_ms = now_ms - state.rules.task_timeout_ms
    burning = len(state.running)
    for task in state.running.values():  # longest silent first
        if task.burning_from_ms > capped_from_ms:
            break
        burning -= 1
    return burning


def usage_state(limits: Limits, projected: int) -> QuotaState:
    """Return the state for a projected use, holds aside."""
    if limits.hard_limit_ms is None:
        return QuotaState.UNLIMITED
    if projected >= limits.hard_limit_ms:
        return QuotaState.EXCEEDED
    if projected >= limits.included_ms:
        return QuotaState.GRACE
    if projected * 100 >= limits.included_ms * WARNING_PERCENT:
        return QuotaState.WARNING
    return QuotaState.OK


def quota_state(state: OrganizationState, now_ms: int) -> QuotaState:
    """Return the organization's state now; a hold overrides everything."""
    if state.profile.holds:
        return QuotaState.SUSPENDED
    return usage_state(state.terms.limits, projected_ms(state, now_ms))


def overage_cap_line_ms(limits: Limits, period: Period) -> int | None:
    """Return the use at which the customer's overage cap is reached; `None`: it never is.

    That is where the last whole minute ends that the cap still pays for, counted on from what is
    in rows: recording time under the same terms does not move the line.
    """
    return _cap_line_ms(limits, period.recorded_ms, period.overage_usd)


def _cap_line_ms(limits: Limits, recorded_ms: int, overage_usd: Decimal) -> int | None:
    cap_usd, rate_usd = limits.overage_cap_usd, limits.overage_usd_per_minute
    if cap_usd is None or not rate_usd or not limits.grace_billed:
        return None
    minutes_left = max(0, int((cap_usd - overage_usd) // rate_usd))
    from_ms = max(recorded_ms, limits.included_ms)
    return (whole_minutes(from_ms) + minutes_left) * MINUTE_MS


def stop_line_ms(limits: Limits, period: Period) -> int | None:
    """Return the use past which nothing is billed: hard limit or overage cap; `None`: neither."""
    return stop_line_from_ms(limits, period.recorded_ms, period.overage_usd)


def stop_line_from_ms(limits: Limits, recorded_ms: int, overage_usd: Decimal) -> int | None:
    """Return `stop_line_ms` for what is in rows, and what its overage has cost."""
    hard_ms, cap_ms = limits.hard_limit_ms, _cap_line_ms(limits, recorded_ms, overage_usd)
    if hard_ms is None or cap_ms is None:
        return cap_ms if hard_ms is None else hard_ms
    return min(hard_ms, cap_ms)


def limit_denial(limits: Limits, period: Period, projected: int) -> DenialReason | None:
    """Return which limit a projected use has reached, or None if work may go on."""
    if limits.hard_limit_ms is not None and projected >= limits.hard_limit_ms:
        return DenialReason.PLAN_LIMIT_REACHED
    cap_ms = overage_cap_line_ms(limits, period)
    if cap_ms is not None and projected >= cap_ms:
        return DenialReason.OVERAGE_CAP_REACHED
    return None


def slot_denial(state: OrganizationState, agent_id: str | None) -> DenialReason | None:
    """Return why this agent (`None`: a new one) gets no slot; a shrunken limit takes none away."""
    tasks = state.agents.get(agent_id, 0) if agent_id is not None else 0
    if tasks >= state.rules.tasks_per_agent:
        return DenialReason.AGENT_BUSY
    limit = state.terms.limits.agents
    if tasks == 0 and limit is not None and len(state.agents) >= limit:
        return DenialReason.AGENT_LIMIT_REACHED
    if len(state.running) >= state.rules.tasks_per_organization:
        return DenialReason.TASK_LIMIT_REACHED
    return None


def denial(state: OrganizationState, agent_id: str | None, now_ms: int) -> DenialReason | None:
    """Return why this agent (`None`: a new one) may not start a task now, or None if it may."""
    return _denial(state, agent_id, projected_ms(state, now_ms))


def _denial(state: OrganizationState, agent_id: str | None, projected: int) -> DenialReason | None:
    if state.profile.holds:
        return DenialReason.SUSPENDED
    limits = state.terms.limits
    if not limits.new_tasks_in_grace and not limits.unlimited and projected >= limits.included_ms:
        return DenialReason.PLAN_LIMIT_REACHED
    return limit_denial(limits, state.period, projected) or slot_denial(state, agent_id)


def running_denial(state: OrganizationState, now_ms: int) -> DenialReason | None:
    """Return why a running task must stop now, or None if it may go on."""
    if state.profile.holds:
        return DenialReason.SUSPENDED
    return limit_denial(state.terms.limits, state.period, projected_ms(state, now_ms))


def view(state: OrganizationState, now_ms: int, agent_id: str | None = None) -> QuotaView:
    """Return the quota object as it is now, judged for `agent_id` or for a new agent."""
    limits, period, projected = state.terms.limits, state.period, projected_ms(state, now_ms)
    is_held = bool(state.profile.holds)
    return QuotaView(
        organization_id=state.organization_id,
        plan=state.terms.plan,
        state=QuotaState.SUSPENDED if is_held else usage_state(limits, projected),
        denial=_denial(state, agent_id, projected),
        hold=state.profile.hold,
        label=period.label,
        period_start_ms=period.start_ms,
        period_end_ms=period.end_ms,
        used_ms=period.used_ms,
        projected_ms=projected,
        included_minutes=limits.included_minutes,
        hard_limit_ms=limits.hard_limit_ms,
        overage_minutes=period.overage_minutes,
        overage_usd=period.overage_usd,
        agents_active=len(state.agents),
        agents_limit=limits.agents,
        as_of_ms=now_ms,
    )


def threshold_lines(limits: Limits, percents: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (percent, projected ms) of thresholds, rising; none when unlimited."""
    hard_ms = limits.hard_limit_ms
    if hard_ms is None:
        return
    for percent in sorted(percents):
        if percent == HARD_PERCENT:
            yield percent, hard_ms
        else:
            yield percent, min(hard_ms, ceil_div(limits.included_ms * percent, 100))


def next_line_ms(state: OrganizationState, projected: int) -> int | None:
    """Return the next projected use that announces or stops something; `None`: there is none."""
    limits, cap_ms = state.terms.limits, overage_cap_line_ms(state.terms.limits, state.period)
    ahead = [] if cap_ms is None or cap_ms <= projected else [cap_ms]
    percents = {*STATE_PERCENTS, *state.profile.threshold_percents}
    for _percent, line_ms in threshold_lines(limits, percents):
        if line_ms > projected:
            ahead.append(line_ms)
            break
    return min(ahead, default=None)


def silent_at_ms(state: OrganizationState) -> int | None:
    """Return when the longest silent running task becomes lost; silence during a stop is free."""
    for task in state.running.values():  # oldest report first
        heard_ms = max(task.reported_at_ms, state.serving_since_ms)
        return heard_ms + state.rules.task_timeout_ms
    return None


def grace_end_ms(state: OrganizationState) -> int | None:
    """Return when an unpaid invoice will suspend the organization; None: nothing will."""
    since_ms = state.profile.past_due_since_ms
    if since_ms is None or Hold.PAYMENT in state.profile.holds:
        return None
    return since_ms + state.rules.payment_grace_ms


def is_due(state: OrganizationState, now_ms: int) -> bool:
    """Tell whether the clock alone has changed something: an end of time, or a silent task."""
    if now_ms >= state.period.end_ms:
        return True
    if state.profile.past_due_since_ms is not None:
        grace_end = grace_end_ms(state)
        if grace_end is not None and now_ms >= grace_end:
            return True
    silent_at = silent_at_ms(state)
    return silent_at is not None and now_ms >= silent_at


def next_wakeup_ms(state: OrganizationState, now_ms: int) -> int:
    """Return the next instant at which time alone changes something: the actor's timer.

    That is the end of the period or of the payment grace, the next silent task, the next
    threshold, the overage cap or the hard limit itself: n burning tasks burn n milliseconds of
    quota in one, so the instant is known exactly.
    """
    wakeup_ms = state.period.end_ms
    if state.profile.past_due_since_ms is not None:
        wakeup_ms = min(wakeup_ms, grace_end_ms(state) or wakeup_ms)
    silent_at = silent_at_ms(state)
    if silent_at is not None:
        wakeup_ms = min(wakeup_ms, silent_at)
    burning = burning_tasks(state, now_ms)
    if burning:
        projected = projected_ms(state, now_ms)
        line_ms = next_line_ms(state, projected)
        if line_ms is not None:
            wakeup_ms = min(wakeup_ms, now_ms + ceil_div(line_ms - projected, burning))
    return wakeup_ms
