"""Builders for tests of the core: a small catalogue, states and commands with few words.

The world begins at NOON_MS, 2026-02-12T12:00:00Z, in the calendar period 2026-02.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from meterd.core.commands import (
    Adjust,
    Audited,
    ChangeOrganization,
    Command,
    Decision,
    Denied,
    FinishTask,
    Heartbeat,
    Notice,
    Recalled,
    Started,
    StartTask,
    Tick,
)
from meterd.core.decide import commit, decide
from meterd.core.organization import OrganizationState, Profile, Rules
from meterd.core.period import Period, calendar_period
from meterd.core.plan import NO_CONTRACT, Catalogue, Contract, Plan, Terms, Tier, resolve
from meterd.core.quota import is_due
from meterd.core.task import Plausibility, Task, TaskInfo, TaskOutcome, TaskState
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS


NOON_MS = 1_770_854_400_000 + 12 * HOUR_MS
MIDNIGHT_MS = NOON_MS + 12 * HOUR_MS
MARCH_MS = 1_772_323_200_000
APRIL_MS = MARCH_MS + 31 * DAY_MS

AUDITED = Audited(actor="key_admin", reason="a test")


def make_plan(tier: Tier, **fields: object) -> Plan:
    """Return a plan; what is not given is Starter's."""
    values: dict[str, object] = {
        "price_usd": Decimal(49),
        "agents": 5,
        "agent_minutes": 1_000,
        "grace_percent": 10,
        "overage_usd_per_minute": Decimal("0.05"),
        "unlimited": False,
        "grace_billed": True,
        "new_tasks_in_grace": True,
    }
    return Plan(tier=tier, **(values | fields))  # type: ignore[arg-type]  # checked by attrs


def make_catalogue(changed: Mapping[Tier, Plan] | None = None) -> Catalogue:
    """Return the contract's catalogue, with some plans replaced."""
    plans = {
        Tier.FREE: make_plan(
            Tier.FREE, price_usd=Decimal(0), agents=1, agent_minutes=100, grace_billed=False
        ),
        Tier.STARTER: make_plan(Tier.STARTER),
        Tier.PRO: make_plan(Tier.PRO, price_usd=Decimal(149), agents=20, agent_minutes=10_000),
        Tier.ENTERPRISE: make_plan(
            Tier.ENTERPRISE, price_usd=Decimal(0), agents=None, agent_minutes=0, unlimited=True
        ),
    }
    return Catalogue(plans=plans | dict(changed or {}))


CATALOGUE = make_catalogue()


def make_rules(
    *,
    catalogue: Catalogue = CATALOGUE,
    task_timeout_ms: int = MINUTE_MS,
    record_interval_ms: int = 10 * MINUTE_MS,
    tasks_per_agent: int = 8,
    tasks_per_organization: int = 10_000,
    plausibility: Plausibility = Plausibility.ENFORCE,
) -> Rules:
    """Return the settings of decisions."""
    return Rules(
        catalogue=catalogue,
        task_timeout_ms=task_timeout_ms,
        record_interval_ms=record_interval_ms,
        tasks_per_agent=tasks_per_agent,
        tasks_per_organization=tasks_per_organization,
        plausibility=plausibility,
    )


def make_terms(
    plan: Tier = Tier.STARTER,
    contract: Contract = NO_CONTRACT,
    *,
    seq: int = 1,
    trialing: bool = False,
    catalogue: Catalogue = CATALOGUE,
) -> Terms:
    """Return terms in force since NOON_MS."""
    return Terms(
        seq=seq,
        effective_at_ms=NOON_MS,
        plan=plan,
        contract=contract,
        trialing=trialing,
        limits=resolve(catalogue, plan, contract, trialing=trialing),
        reason="a test",
    )


def make_period(*, used_ms: int = 0, at_ms: int = NOON_MS) -> Period:
    """Return the open calendar period, with time used and recorded."""
    month = calendar_period(at_ms, terms_seq=1)
    return Period(
        start_ms=month.start_ms,
        end_ms=month.end_ms,
        label=month.label,
        terms_seq=1,
        used_ms=used_ms,
        recorded_ms=used_ms,
    )


def make_state(
    plan: Tier = Tier.STARTER,
    contract: Contract = NO_CONTRACT,
    *,
    used_ms: int = 0,
    trialing: bool = False,
    rules: Rules | None = None,
    at_ms: int = NOON_MS,
) -> OrganizationState:
    """Return an organization without tasks that has used some time already."""
    rules = rules or make_rules()
    return OrganizationState(
        organization_id="org_1",
        rules=rules,
        profile=Profile(name="One", created_at_ms=NOON_MS),
        terms=make_terms(plan, contract, trialing=trialing, catalogue=rules.catalogue),
        period=make_period(used_ms=used_ms, at_ms=at_ms),
        serving_since_ms=at_ms,
    )


def make_info(task_id: str = "task_1", agent_id: str = "agent_1", **fields: object) -> TaskInfo:
    """Return what a task is started with."""
    values: dict[str, object] = {"started_at_ms": NOON_MS}
    return TaskInfo(task_id=task_id, agent_id=agent_id, **(values | fields))  # type: ignore[arg-type]  # checked by attrs


def make_task(  # noqa: PLR0913  # a builder: each test names the few it needs
    task_id: str = "task_1",
    agent_id: str = "agent_1",
    *,
    state: TaskState = TaskState.RUNNING,
    elapsed_ms: int = 0,
    metered_ms: int | None = None,
    recorded_ms: int = 0,
    reported_at_ms: int = NOON_MS,
    ended_at_ms: int | None = None,
    seq: int = 1,
) -> Task:
    """Return a task's position."""
    return Task(
        info=make_info(task_id, agent_id),
        state=state,
        outcome=TaskOutcome.SUCCEEDED if state is TaskState.FINISHED else None,
        elapsed_ms=elapsed_ms,
        metered_ms=elapsed_ms if metered_ms is None else metered_ms,
        recorded_ms=recorded_ms,
        reported_at_ms=reported_at_ms,
        metered_until_ms=reported_at_ms,
        ended_at_ms=ended_at_ms,
        burning_from_ms=reported_at_ms,
        pace_from_ms=reported_at_ms,
        pace_elapsed_ms=elapsed_ms,
        seq=seq,
    )


def make_start(
    task_id: str = "task_1", agent_id: str = "agent_1", *, elapsed_ms: int = 0, **fields: object
) -> StartTask:
    """Return a start of a task that the store has never seen."""
    info = make_info(task_id, agent_id, initial_elapsed_ms=elapsed_ms, **fields)
    return StartTask(info=info, recalled=Recalled(None))


def make_finish(
    task_id: str = "task_1", elapsed_ms: int = 0, outcome: TaskOutcome = TaskOutcome.SUCCEEDED
) -> FinishTask:
    """Return a finish."""
    return FinishTask(task_id=task_id, elapsed_ms=elapsed_ms, outcome=outcome)


def make_change(**fields: object) -> ChangeOrganization:
    """Return an operator's change."""
    return ChangeOrganization(audited=AUDITED, **fields)  # type: ignore[arg-type]  # checked by attrs


def make_adjust(agent_ms: int, **fields: object) -> Adjust:
    """Return a debit (positive) or credit."""
    return Adjust(audited=AUDITED, agent_ms=agent_ms, **fields)  # type: ignore[arg-type]  # checked by attrs


def drive(state: OrganizationState, command: Command, now_ms: int) -> Decision:
    """Let time pass, decide and commit, as the organization's actor does.

    The decision of a Tick that was due comes first in `notices`.
    """
    notices: tuple[Notice, ...] = ()
    if is_due(state, now_ms):
        passed = decide(state, Tick(), now_ms)
        commit(state, passed)
        notices = passed.notices
        if isinstance(command, Tick):
            return passed
    decision = decide(state, command, now_ms)
    commit(state, decision)
    return Decision(decision.outcome, decision.facts, notices + decision.notices)


def start(
    state: OrganizationState,
    task_id: str = "task_1",
    agent_id: str = "agent_1",
    *,
    now_ms: int = NOON_MS,
    elapsed_ms: int = 0,
) -> Task:
    """Start a task that must be admitted."""
    outcome = drive(state, make_start(task_id, agent_id, elapsed_ms=elapsed_ms), now_ms).outcome
    assert isinstance(outcome, Started), outcome
    return outcome.task


def start_denied(
    state: OrganizationState,
    task_id: str = "task_x",
    agent_id: str = "agent_x",
    *,
    now_ms: int = NOON_MS,
) -> Denied:
    """Start a task that must be refused."""
    outcome = drive(state, make_start(task_id, agent_id), now_ms).outcome
    assert isinstance(outcome, Denied), outcome
    return outcome


def run_to(
    state: OrganizationState, task_id: str, until_ms: int, *, every_ms: int = 10 * SECOND_MS
) -> None:
    """Let a running task report, truthfully, every ten seconds from its last report on."""
    while (task := state.running[task_id]).reported_at_ms < until_ms:
        now_ms = min(until_ms, task.reported_at_ms + every_ms)
        elapsed_ms = task.elapsed_ms + now_ms - task.reported_at_ms
        drive(state, Heartbeat(task_id, elapsed_ms), now_ms)
