"""One organization's live state, the facts that change it, and how they apply.

`decide` (core.decide) reads a state and returns facts; `apply` puts facts into the state. Facts
carry absolute values (a task's new position, a period's new totals), so applying them twice is the
same as once: that is what makes replay after a crash and retry after a lost reply safe.

The state is the one mutable thing of the core. One actor owns it, only `apply` writes to it, and
everything inside it is frozen.
"""

from __future__ import annotations

import enum
import itertools

import attrs

from meterd.core.cycle import Cycle
from meterd.core.event import BookedEvent, EventKey, EventVoid, KnownEvent
from meterd.core.notification import Notification
from meterd.core.period import Period
from meterd.core.plan import Catalogue, Terms
from meterd.core.slowing import STEADY, Slowing
from meterd.core.task import LOST_KEPT_MAX, LOST_REPORTS_MS, Plausibility, Task, TaskState
from meterd.core.units import DAY_MS, MINUTE_MS
from meterd.core.usage import UsageRow


CLOSED_PERIODS_KEPT_MS = 36 * DAY_MS
"""Late reports reach back at most 31 days and events 35: older periods leave the memory."""

THRESHOLD_PERCENTS_DEFAULT = (50, 75, 80, 90, 100, 110)
"""Shares of the included minutes at which an organization is told, unless it chooses others."""

FINISHED_KEPT_MS = MINUTE_MS
"""Longer than any look-up in the store takes: what leaves the memory is found there."""


class QuotaState(enum.Enum):
    """How much of the allowance is used; `suspended` overrides all others."""

    OK = "ok"
    WARNING = "warning"
    GRACE = "grace"
    EXCEEDED = "exceeded"
    UNLIMITED = "unlimited"
    SUSPENDED = "suspended"


class DenialReason(enum.Enum):
    """Why a task may not start, in the order in which the reasons are checked."""

    SUSPENDED = "suspended"
    PLAN_LIMIT_REACHED = "plan_limit_reached"
    OVERAGE_CAP_REACHED = "overage_cap_reached"
    AGENT_BUSY = "agent_busy"
    AGENT_LIMIT_REACHED = "agent_limit_reached"
    TASK_LIMIT_REACHED = "task_limit_reached"


class Hold(enum.Enum):
    """Why an organization is suspended; the two are independent."""

    OPERATOR = "operator"
    PAYMENT = "payment"


@attrs.frozen(kw_only=True)
class Rules:
    """Settings every decision obeys; the same for all organizations of a process."""

    task_timeout_ms: int = 60_000
    """A running task silent for this long is lost."""
    record_interval_ms: int = 600_000
    """A running task gets a ledger row for every so much elapsed time."""
    tasks_per_agent: int = 8
    tasks_per_organization: int = 10_000
    """Running at once: a bound where the plan sets none."""
    catalogue: Catalogue
    plausibility: Plausibility = Plausibility.ENFORCE
    payment_grace_ms: int = 7 * DAY_MS
    """How long work goes on after a cycle invoice's first failed payment."""

    @property
    def heartbeat_interval_ms(self) -> int:
        """Return how often agents are asked to report: 10 s, or a third of the time-out."""
        return min(10_000, self.task_timeout_ms // 3)


@attrs.frozen(kw_only=True)
class Profile:
    """What an operator and Stripe say about the organization, terms aside."""

    name: str
    stripe_customer_id: str | None = None
    holds: frozenset[Hold] = frozenset()
    hold_reason: str | None = None
    created_at_ms: int
    cycle: Cycle | None = None
    """The live subscription that plan and periods follow; `None`: neither is Stripe's."""
    past_due_since_ms: int | None = None
    """First failure of the oldest unpaid cycle invoice."""
    billing_alerts: frozenset[str] = frozenset()
    """What is doubtful about the subscriptions, each reported once."""
    threshold_percents: tuple[int, ...] = THRESHOLD_PERCENTS_DEFAULT
    """When the organization is told, rising; its own choice."""

    @property
    def hold(self) -> Hold | None:
        """Return the hold to speak of: an operator's outranks a payment's."""
        if not self.holds:
            return None
        return Hold.OPERATOR if Hold.OPERATOR in self.holds else Hold.PAYMENT


@attrs.frozen(kw_only=True)
class AuditEntry:
    """One operator's write, as it lands in `audit_log` with the facts it caused."""

    id: str
    at_ms: int
    actor: str
    action: str
    reason: str
    before_json: str
    after_json: str


@attrs.frozen(kw_only=True)
class Finding:
    """Something a person should look at; nothing was changed because of it."""

    id: str
    at_ms: int
    kind: str
    detail_json: str


@attrs.frozen(kw_only=True, slots=False)  # made per heartbeat, see Task
class Facts:
    """What one decision changed; written in one transaction, numbered without gaps by `seq`."""

    seq: int
    rows: tuple[UsageRow, ...] = ()
    tasks: tuple[Task, ...] = ()
    """New positions; a task seen for the first time is in `started` too."""
    started: frozenset[str] = frozenset()
    periods: tuple[Period, ...] = ()
    """New totals, oldest period first; the last open one is the current period."""
    terms: Terms | None = None
    profile: Profile | None = None
    audit: AuditEntry | None = None
    findings: tuple[Finding, ...] = ()
    notifications: tuple[Notification, ...] = ()
    events: tuple[BookedEvent, ...] = ()
    voids: tuple[EventVoid, ...] = ()


@attrs.define(slots=True, eq=False, kw_only=True)
class OrganizationState:
    """An organization as its actor knows it."""

    organization_id: str
    rules: Rules
    profile: Profile
    terms: Terms
    earlier_terms: dict[int, Terms] = attrs.Factory(dict)
    """Terms that closed periods in memory refer to."""
    period: Period
    closed_periods: tuple[Period, ...] = ()
    """Newest first, as far back as a late report can reach."""
    running: dict[str, Task] = attrs.Factory(dict)
    """By task id, longest silent first: only a report moves its task, and it moves to the end."""
    ended: dict[str, Task] = attrs.Factory(dict)
    """Lost tasks that may still report, and finished ones still in memory."""
    lost: dict[str, None] = attrs.Factory(dict)
    """Ids of the lost tasks in `ended`, oldest loss first."""
    recent_events: dict[EventKey, KnownEvent] = attrs.Factory(dict)
    """Events the store may not know yet, in the order of their last fact."""
    agents: dict[str, int] = attrs.Factory(dict)
    """Running tasks per agent; its size is the number of slots taken."""
    burning_from_sum_ms: int = 0
    """The sum of `burning_from_ms` over running tasks: makes projected use O(1)."""
    announced: QuotaState | None = None
    """The quota state last pushed to listeners; None right after a start."""
    announced_stop: DenialReason | None = None
    """Why running tasks were last told to stop, as of the same push."""
    serving_since_ms: int
    """When this process took over: silence before it is nobody's fault."""
    slowing: Slowing = STEADY
    """What the clock of this process has left out; like `serving_since_ms`, no fact."""
    seq: int = 0

    def task(self, task_id: str) -> Task | None:
        """Return a task in memory, running or ended."""
        return self.running.get(task_id) or self.ended.get(task_id)

    def terms_of(self, period: Period) -> Terms:
        """Return the terms a period is metered under: the current ones, or those at its end."""
        if not period.closed or period.terms_seq == self.terms.seq:
            return self.terms
        return self.earlier_terms[period.terms_seq]


def apply(state: OrganizationState, facts: Facts) -> None:
    """Put facts into the state; facts already in it change nothing."""
    if facts.seq <= state.seq:
        return
    assert facts.seq == state.seq + 1, ("facts out of order", facts.seq, state.seq)
    if facts.terms is not None:
        # A period may close in the same decision that changes the terms.
        known = (*state.closed_periods, *facts.periods)
        if any(period.terms_seq == state.terms.seq for period in known):
            state.earlier_terms[state.terms.seq] = state.terms
        state.terms = facts.terms
    if facts.profile is not None:
        state.profile = facts.profile
    closed = []
    for period in facts.periods:
        if period.closed:
            closed.append(period)
        else:
            state.period = period
    if closed:
        _put_closed_periods(state, closed)
    for task in facts.tasks:
        put_task(state, task)
    if facts.events or facts.voids:
        _put_events(state, facts)
    state.seq = facts.seq


def _put_events(state: OrganizationState, facts: Facts) -> None:
    for event in facts.events:
        state.recent_events[event.key] = KnownEvent(event)
    for void in facts.voids:
        state.recent_events.pop(void.event.key, None)  # to the end of the line
        state.recent_events[void.event.key] = KnownEvent(void.event, void)


def _put_closed_periods(state: OrganizationState, closed: list[Period]) -> None:
    """Keep the closed periods a late report can reach, and the terms they were metered under.

    An older one was recalled for an adjustment: its terms are not here, the next is recalled too.
    """
    known = {period.start_ms: period for period in (*state.closed_periods, *closed)}
    kept_from_ms = state.period.start_ms - CLOSED_PERIODS_KEPT_MS
    terms = {**state.earlier_terms, state.terms.seq: state.terms}
    state.closed_periods = tuple(
        period
        for _, period in sorted(known.items(), reverse=True)
        if period.end_ms >= kept_from_ms and period.terms_seq in terms
    )
    named = {period.terms_seq for period in state.closed_periods}
    state.earlier_terms = {seq: t for seq, t in state.earlier_terms.items() if seq in named}


def put_task(state: OrganizationState, task: Task) -> None:
    """Replace a task's position and keep the aggregates over running tasks exact."""
    task_id = task.info.task_id
    known = state.running.get(task_id)
    if known is not None:
        state.burning_from_sum_ms -= known.burning_from_ms
        if task.state is TaskState.RUNNING:
            if task.reported_at_ms != known.reported_at_ms:
                del state.running[task_id]  # heard from: to the end of the line
            state.running[task_id] = task
            state.burning_from_sum_ms += task.burning_from_ms
            return
        del state.running[task_id]
        agent_id = known.info.agent_id
        tasks = state.agents[agent_id] - 1
        if tasks:
            state.agents[agent_id] = tasks
        else:
            del state.agents[agent_id]
    if task.state is TaskState.RUNNING:
        state.ended.pop(task_id, None)
        state.lost.pop(task_id, None)
        state.running[task_id] = task
        state.burning_from_sum_ms += task.burning_from_ms
        state.agents[task.info.agent_id] = state.agents.get(task.info.agent_id, 0) + 1
        return
    state.ended[task_id] = task
    if task.state is TaskState.LOST:
        state.lost.setdefault(task_id)
    else:
        state.lost.pop(task_id, None)


def forget_ended(state: OrganizationState, *, now_ms: int, durable_seq: int) -> None:
    """Drop ended tasks nobody is likely to speak of again; the store still knows them.

    Only what is durable may go: the store must be able to answer for it. Finished tasks stay for
    a minute (a repeated `finish` is answered from memory), lost ones as long as they may report.
    Of more than `LOST_KEPT_MAX` lost ones only the latest stay longer than a minute: agents that
    start and vanish must not fill the memory.
    """
    surplus = max(0, len(state.lost) - LOST_KEPT_MAX)
    unneeded = set(itertools.islice(state.lost, surplus))  # oldest loss first
    for task_id, task in list(state.ended.items()):
        is_kept_long = task.state is TaskState.LOST and task_id not in unneeded
        kept_ms = LOST_REPORTS_MS if is_kept_long else FINISHED_KEPT_MS
        if task.seq <= durable_seq and (task.ended_at_ms or 0) + kept_ms <= now_ms:
            del state.ended[task_id]
            state.lost.pop(task_id, None)


def forget_events(state: OrganizationState, *, durable_seq: int) -> None:
    """Drop the events that whoever asks the store from now on will find there."""
    for key, known in list(state.recent_events.items()):
        if known.seq > durable_seq:
            return
        del state.recent_events[key]
