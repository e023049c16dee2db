"""The heartbeat that only adds pending time, decided at once: nine reports of ten are like that.

Rule 1: this is a shortcut, not a second rule book. For a report it takes, it returns exactly what
        `decide` would without it; a property test compares the two.
Rule 2: in doubt it returns None, and the general way decides.
Rule 3: reports that are taken together are one fact; but for its number they leave the state as
        one after the other would.
"""

from __future__ import annotations

from collections.abc import Sequence

from meterd.core.commands import Beat, Beats, Decision, Report
from meterd.core.organization import Facts, OrganizationState, QuotaState
from meterd.core.period import with_used_ms
from meterd.core.quota import (
    HARD_PERCENT,
    limit_denial,
    projected_ms,
    stop_line_ms,
    usage_state,
)
from meterd.core.task import CLAIM_TOLERANCE_MS, PACE_WINDOW_MS, Task
from meterd.core.units import DAY_MS


def decide_at_once(
    state: OrganizationState, task: Task, elapsed_ms: int, now_ms: int
) -> Decision | None:
    """Return the decision on a running task's plain report; None: not plain, or not plainly so."""
    moved = _moved(state, task, elapsed_ms, now_ms, _pending_from_ms(state, now_ms))
    if moved is None:
        return None
    added_ms = elapsed_ms - task.elapsed_ms
    silent_ms = min(now_ms - task.burning_from_ms, state.rules.task_timeout_ms)
    projected = projected_ms(state, now_ms) + added_ms - silent_ms
    used_ms = state.period.used_ms + added_ms
    if not _is_uneventful(state, used_ms, projected, projected):
        return None
    return Decision(Beat(moved, None, clamped=False), _facts(state, (moved,), used_ms))


def decide_together(state: OrganizationState, reports: Sequence[Report], now_ms: int) -> Decision:
    """Return the decision on the plain reports at the beginning of `reports`: perhaps none."""
    running, timeout_ms = state.running, state.rules.task_timeout_ms
    pending_from_ms = _pending_from_ms(state, now_ms)
    used_ms = state.period.used_ms
    projected = lowest = highest = projected_ms(state, now_ms)
    tasks: list[Task] = []
    latest: dict[str, Task] = {}
    for report in reports:
        task_id, elapsed_ms = report.task_id, report.elapsed_ms
        task = latest.get(task_id) or running.get(task_id)
        if task is None:
            break
        moved = _moved(state, task, elapsed_ms, now_ms, pending_from_ms)
        if moved is None:
            break
        added_ms = elapsed_ms - task.elapsed_ms
        used_ms += added_ms
        projected += added_ms - min(now_ms - task.burning_from_ms, timeout_ms)
        if projected < lowest:
            lowest = projected
        elif projected > highest:
            highest = projected
        tasks.append(moved)
        latest[task_id] = moved
    if not tasks or not _is_uneventful(state, used_ms, lowest, highest):
        return Decision(Beats(()))
    return Decision(Beats(tuple(tasks)), _facts(state, tuple(latest.values()), used_ms))


def _pending_from_ms(state: OrganizationState, now_ms: int) -> int:
    """Return since when pending time may have run: it is of one period and of one day."""
    return max(state.period.start_ms, (now_ms - 1) // DAY_MS * DAY_MS)


def _moved(
    state: OrganizationState, task: Task, elapsed_ms: int, now_ms: int, pending_from_ms: int
) -> Task | None:
    """Return a running task moved by a report; None: more is due than adding pending time."""
    info = task.info
    added_ms = elapsed_ms - task.elapsed_ms
    pending_ms = task.metered_ms - task.recorded_ms
    if (
        added_ms <= 0
        or elapsed_ms > info.initial_elapsed_ms + now_ms - info.started_at_ms + CLAIM_TOLERANCE_MS
        or now_ms - task.pace_from_ms >= PACE_WINDOW_MS
        or now_ms - added_ms < pending_from_ms
        or (pending_ms and task.metered_until_ms <= pending_from_ms)
        or pending_ms + added_ms >= state.rules.record_interval_ms
    ):
        return None
    return Task(
        info,
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
        state.seq + 1,
    )


def _is_uneventful(state: OrganizationState, used_ms: int, lowest: int, highest: int) -> bool:
    """Tell whether nothing is announced, stopped or priced anew on the way to this use.

    On that way projected use stays between `lowest` and `highest`; states, thresholds and limits
    are reached from below, so the two ends speak for all between.
    """
    limits, period, announced = state.terms.limits, state.period, state.announced
    if (
        usage_state(limits, highest) is not announced
        or (lowest != highest and usage_state(limits, lowest) is not announced)
        or state.announced_stop is not None
        or state.profile.holds
        or (announced is not QuotaState.UNLIMITED and _is_threshold_due(state, highest))
    ):
        return False
    if limits.overage_cap_usd is not None and limit_denial(limits, period, highest) is not None:
        return False
    is_included = period.used_ms < limits.included_ms
    line_ms = limits.included_ms if is_included else stop_line_ms(limits, period)
    return line_ms is None or used_ms < line_ms


def _is_threshold_due(state: OrganizationState, projected: int) -> bool:
    """Tell whether a threshold is reached that was not told: they are told in rising order."""
    limits, notified = state.terms.limits, state.period.notified_percents
    for percent in state.profile.threshold_percents:
        if percent not in notified:
            if percent == HARD_PERCENT:
                return False  # its quota state was never announced, or a stop was
            return projected * 100 >= limits.included_ms * percent
    return False


def _facts(state: OrganizationState, tasks: tuple[Task, ...], used_ms: int) -> Facts:
    return Facts(seq=state.seq + 1, tasks=tasks, periods=(with_used_ms(state.period, used_ms),))
