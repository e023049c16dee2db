"""The heartbeat that only adds pending time, decided at once: nine reports of ten are like that.

Rule 1: this is a shortcut, not a second rule book. For a report it takes, it returns exactly what
        `decide` would without it; a property test compares the two.
Rule 2: in doubt it returns None, and the general way decides.
"""

from __future__ import annotations

from meterd.core.commands import Beat, Decision
from meterd.core.organization import Facts, OrganizationState, QuotaState
from meterd.core.period import with_used_ms
from meterd.core.quota import (
    HARD_PERCENT,
    limit_denial,
    projected_ms,
    stop_line_ms,
    usage_state,
)
from meterd.core.task import PACE_WINDOW_MS, Task, plausible_elapsed_ms
from meterd.core.units import DAY_MS


def decide_at_once(
    state: OrganizationState, task: Task, elapsed_ms: int, now_ms: int
) -> Decision | None:
    """Return the decision on a running task's plain report; None: not plain, or not plainly so."""
    added_ms = elapsed_ms - task.elapsed_ms
    if (
        added_ms <= 0
        or elapsed_ms > plausible_elapsed_ms(task.info, now_ms)
        or now_ms - task.pace_from_ms >= PACE_WINDOW_MS
        or _is_row_due(state, task, added_ms, now_ms)
    ):
        return None
    period = state.period
    silent_ms = min(now_ms - task.burning_from_ms, state.rules.task_timeout_ms)
    projected = projected_ms(state, now_ms) + added_ms - silent_ms
    quota = usage_state(state.terms.limits, projected)
    if quota is not state.announced or state.announced_stop is not None or state.profile.holds:
        return None
    limits = state.terms.limits
    if quota is not QuotaState.UNLIMITED and _is_threshold_due(state, projected):
        return None
    if limits.overage_cap_usd is not None and limit_denial(limits, period, projected) is not None:
        return None
    seq = state.seq + 1
    moved = Task(
        task.info,
        task.state,
        task.outcome,
        elapsed_ms,
        task.metered_ms + added_ms,
        task.recorded_ms,
        now_ms,  # reported_at_ms
        now_ms,  # metered_until_ms
        task.ended_at_ms,
        now_ms,  # burning_from_ms
        task.pace_from_ms,
        task.pace_elapsed_ms,
        seq,
    )
    grown = with_used_ms(period, period.used_ms + added_ms)
    return Decision(
        Beat(moved, None, clamped=False), Facts(seq=seq, tasks=(moved,), periods=(grown,))
    )


def _is_threshold_due(state: OrganizationState, projected: int) -> bool:
    """Tell whether a threshold is reached that was not told: they are told in rising order."""
    limits, notified = state.terms.limits, state.period.notified_percents
    for percent in state.profile.threshold_percents:
        if percent not in notified:
            if percent == HARD_PERCENT:
                return False  # its quota state was never announced, or a stop was
            return projected * 100 >= limits.included_ms * percent
    return False


def _is_row_due(state: OrganizationState, task: Task, added_ms: int, now_ms: int) -> bool:
    """Tell whether the report crosses a line, a day or a period, or completes the interval."""
    period, limits = state.period, state.terms.limits
    start_ms = now_ms - added_ms
    pending_ms = task.metered_ms - task.recorded_ms
    today = (now_ms - 1) // DAY_MS
    if (
        start_ms < period.start_ms
        or start_ms // DAY_MS != today
        or (pending_ms and (task.metered_until_ms - 1) // DAY_MS != today)
        or pending_ms + added_ms >= state.rules.record_interval_ms
    ):
        return True
    is_included = period.used_ms < limits.included_ms
    line_ms = limits.included_ms if is_included else stop_line_ms(limits, period)
    return line_ms is not None and period.used_ms + added_ms >= line_ms
