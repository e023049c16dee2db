"""The core against a naive book, in any order of commands, however often they are repeated.

The book (naive_book.py) shares no code with the core. Beside it, the ledger is audited row by row,
and a store made of nothing but facts must give the live state back at any moment.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from decimal import Decimal

import attrs
import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meterd.core.commands import (
    Adjusted,
    Beat,
    Command,
    CreditExceedsUsage,
    Decision,
    Denied,
    ExceedsHardLimit,
    Finished,
    FinishTask,
    Heartbeat,
    NeedsPeriod,
    Recalled,
    RecalledPeriod,
    Started,
    StartTask,
    StopTasks,
    TaskClosed,
    TaskConflict,
    TaskUnknown,
    Tick,
)
from meterd.core.decide import _heartbeat_in_full, commit, decide
from meterd.core.journal import StoredOrganization, restore
from meterd.core.organization import Facts, Hold, OrganizationState, Profile, apply, forget_ended
from meterd.core.period import Period
from meterd.core.plan import Contract, Terms, Tier
from meterd.core.quota import is_due, next_wakeup_ms, projected_ms, quota_state
from meterd.core.task import Task, TaskOutcome, TaskState
from meterd.core.units import DAY_MS, MINUTE_MS
from meterd.core.usage import Kind, Source, UsageRow
from tests.organizations import make_adjust, make_change, make_info, make_rules, make_state
from tests.property.naive_book import (
    TASKS_PER_AGENT,
    TASKS_PER_ORGANIZATION,
    BookLimits,
    NaiveBook,
)


MARCH_MS = 1_772_323_200_000
AGENT_IDS = ["agent_1", "agent_2", "agent_3"]
RULES = make_rules(
    tasks_per_agent=TASKS_PER_AGENT,
    tasks_per_organization=TASKS_PER_ORGANIZATION,
    record_interval_ms=90_000,
)
FIRST = Contract(agents=2, agent_minutes=3, grace_percent=10)
CLOSED_KEPT_MS = 36 * DAY_MS


class FactStore:
    """What a store would hold: facts folded into rows, positions and totals."""

    def __init__(self, state: OrganizationState) -> None:
        self.first = (state.profile, state.terms, state.period)
        self.facts: list[Facts] = []

    def stored(self, count: int, now_ms: int) -> StoredOrganization:
        """Return the organization as of its first `count` facts."""
        profile: Profile = self.first[0]
        terms: dict[int, Terms] = {1: self.first[1]}
        periods: dict[int, Period] = {self.first[2].start_ms: self.first[2]}
        tasks: dict[str, Task] = {}
        for facts in self.facts[:count]:
            profile = facts.profile or profile
            if facts.terms is not None:
                terms[facts.terms.seq] = facts.terms
            periods.update((period.start_ms, period) for period in facts.periods)
            tasks.update((task.info.task_id, task) for task in facts.tasks)
        period = next(period for period in periods.values() if not period.closed)
        kept = [
            known
            for known in periods.values()
            if known.closed and known.end_ms >= period.start_ms - CLOSED_KEPT_MS
        ]
        kept.sort(key=lambda known: -known.start_ms)
        return StoredOrganization(
            organization_id="org_1",
            seq=count,
            profile=profile,
            terms=terms[max(terms)],
            earlier_terms=tuple(terms[seq] for seq in {known.terms_seq for known in kept}),
            period=period,
            closed_periods=tuple(kept),
            tasks=tuple(
                task
                for task in tasks.values()
                if task.state is TaskState.RUNNING
                or (
                    task.state is TaskState.LOST
                    and task.ended_at_ms is not None
                    and now_ms < task.ended_at_ms + DAY_MS
                )
            ),
        )

    def recall(self, task_id: str) -> Task | None:
        for facts in reversed(self.facts):
            for task in facts.tasks:
                if task.info.task_id == task_id:
                    return task
        return None

    def recall_period(self, label: str) -> RecalledPeriod:
        terms = {1: self.first[1]} | {f.terms.seq: f.terms for f in self.facts if f.terms}
        for facts in reversed(self.facts):
            for period in facts.periods:
                if period.label == label and period.closed:
                    return RecalledPeriod((period, terms[period.terms_seq]))
        return RecalledPeriod(None)

    @property
    def rows(self) -> list[UsageRow]:
        return [row for facts in self.facts for row in facts.rows]


def billing(state: OrganizationState) -> dict[str, object]:
    """Return what must be equal however a state came to be; the pace window starts anew."""
    return {
        "seq": state.seq,
        "profile": state.profile,
        "terms": state.terms,
        "earlier_terms": state.earlier_terms.keys() - {state.terms.seq},
        "period": state.period,
        "closed_periods": state.closed_periods,
        "running": {
            task_id: attrs.evolve(task, pace_from_ms=0, pace_elapsed_ms=0)
            for task_id, task in state.running.items()
        },
        "agents": state.agents,
        "burning_from_sum_ms": state.burning_from_sum_ms,
    }


def known_tasks(machine: OrganizationMachine) -> st.SearchStrategy[str]:
    """Choose a running task most of the time, else any, else one that nobody started."""
    running = list(machine.state.running)
    return st.sampled_from([*running, *running, *running, *list(machine.book.tasks)[-3:], "nobody"])


def new_or_known_tasks(machine: OrganizationMachine) -> st.SearchStrategy[str]:
    """Choose a new task most of the time, else one that has been started."""
    new = f"task_{len(machine.book.tasks)}"
    return st.sampled_from([new, new, new, new, *list(machine.book.tasks)[-2:]])


class OrganizationMachine(RuleBasedStateMachine):
    """One organization, its naive book and its store of facts, driven by the same commands."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = MARCH_MS - 20 * MINUTE_MS
        self.state = make_state(Tier.STARTER, FIRST, rules=RULES, at_ms=self.now_ms)
        self.store = FactStore(self.state)
        self.book = NaiveBook(self.state.period.start_ms, self.book_limits(), self.now_ms)

    @initialize(minutes=st.integers(1, 8), free=st.booleans())
    def agree_on_terms(self, minutes: int, free: bool) -> None:
        """Begin under different allowances, billed past them or not."""
        contract = attrs.evolve(FIRST, agent_minutes=minutes)
        self.do(make_change(plan=Tier.FREE if free else Tier.PRO, contract=contract))
        self.book.limits = self.book_limits()

    def book_limits(self) -> BookLimits:
        """Copy the terms in force into the book: the contract's numbers, not the core's rules."""
        limits = self.state.terms.limits
        return BookLimits(
            limits.included_minutes * MINUTE_MS,
            limits.hard_limit_ms,
            limits.agents,
            limits.new_tasks_in_grace,
        )

    def keep(self, decision: Decision) -> None:
        commit(self.state, decision)
        if decision.facts is not None:
            self.store.facts.append(decision.facts)

    def do(self, command: Command) -> Decision:
        """Let time pass and decide, as the actor does, with the book following."""
        self.book.pass_time(self.now_ms)
        if is_due(self.state, self.now_ms):
            self.keep(decide(self.state, Tick(), self.now_ms))
        decision = decide(self.state, command, self.now_ms)
        self.keep(decision)
        return decision

    # --- time ---------------------------------------------------------------------------------

    @rule(step_ms=st.one_of(st.integers(0, 30_000), st.integers(0, 200_000)))
    def wait(self, step_ms: int) -> None:
        self.now_ms += step_ms

    @rule(offset_ms=st.sampled_from([-1, 0, 1, 7_000]), days=st.booleans(), near=st.booleans())
    def wait_until_a_boundary(self, offset_ms: int, days: bool, near: bool) -> None:
        """Go to the next UTC day or period, and a bit before or after; tasks work until then."""
        if not near and self.state.period.end_ms - self.now_ms > 30 * MINUTE_MS:
            return
        while self.state.running and self.state.period.end_ms - self.now_ms > 30_000:
            if self.state.period.end_ms - self.now_ms > 30 * MINUTE_MS:
                break
            self.work(1, 20_000)
        day_ms = (self.now_ms // DAY_MS + 1) * DAY_MS
        target_ms = day_ms if days else self.state.period.end_ms
        self.now_ms = max(self.now_ms, target_ms + offset_ms)

    @rule(days=st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1, 40, 100]))
    def wait_long(self, days: int) -> None:
        self.now_ms += days * DAY_MS

    @precondition(lambda self: bool(self.state.running))
    @rule(rounds=st.integers(1, 8), step_ms=st.integers(1, 15_000))
    def work(self, rounds: int, step_ms: int) -> None:
        """Every running task reports the truth, round after round: what most of life is."""
        for _ in range(rounds):
            self.now_ms += step_ms
            for task_id in list(self.state.running):
                self.report_once(task_id, self.claim(task_id, 0))

    @rule()
    def tick(self) -> None:
        self.do(Tick())

    @rule()
    def wait_for_the_timer(self) -> None:
        """At the wake-up, and not one millisecond before, time alone changes something."""
        self.do(Tick())
        wakeup_ms = next_wakeup_ms(self.state, self.now_ms)
        assert wakeup_ms > self.now_ms
        before = decide(self.state, Tick(), wakeup_ms - 1)
        assert not is_due(self.state, wakeup_ms - 1)
        assert before.facts is None
        assert before.notices == ()
        self.now_ms = wakeup_ms
        self.book.pass_time(self.now_ms)
        decision = decide(self.state, Tick(), self.now_ms)
        self.keep(decision)
        stopped = [notice for notice in decision.notices if isinstance(notice, StopTasks)]
        assert bool(stopped) <= (self.book.quota(self.now_ms) == "exceeded")

    # --- tasks --------------------------------------------------------------------------------

    @rule(
        task_id=st.runner().flatmap(new_or_known_tasks),
        agent_id=st.sampled_from(AGENT_IDS),
        initial_ms=st.sampled_from([0, 0, 0, 1, 59_999, 120_000, 300_000]),
    )
    def start(self, task_id: str, agent_id: str, initial_ms: int) -> None:
        """Never refused when it fits, never admitted over; a repeat changes nothing."""
        info = make_info(task_id, agent_id, initial_elapsed_ms=initial_ms)
        recalled = Recalled(self.store.recall(task_id))
        seq = self.state.seq
        outcome = self.do(StartTask(info=info, recalled=recalled)).outcome
        known = self.book.tasks.get(task_id)
        if known is not None:
            is_same = (known.agent_id, known.initial_ms) == (agent_id, initial_ms)
            if is_same:
                assert isinstance(outcome, Started)
                assert outcome.repeated
            else:
                assert outcome == TaskConflict()
            return
        reason = self.book.start(task_id, agent_id, initial_ms, self.now_ms)
        if reason is None:
            assert isinstance(outcome, Started)
            assert not outcome.repeated
        else:
            assert isinstance(outcome, Denied)
            assert outcome.reason.value == reason
            assert task_id not in self.state.running
        assert self.state.seq >= seq

    @rule(
        task_id=st.runner().flatmap(known_tasks),
        lag_ms=st.sampled_from([-10_000, -5_001, -5_000, 0, 0, 0, 0, 0, 1, 700, 30_000]),
        twice=st.booleans(),
    )
    def report(self, task_id: str, lag_ms: int, twice: bool) -> None:
        """Send a heartbeat near the truth, or too large, or late; perhaps delivered twice."""
        claimed_ms = self.claim(task_id, lag_ms)
        for _ in range(1 + twice):
            self.report_once(task_id, claimed_ms)

    def report_once(self, task_id: str, claimed_ms: int) -> None:
        command = Heartbeat(task_id, claimed_ms, Recalled(self.store.recall(task_id)))
        self.do(Tick())
        in_full = _heartbeat_in_full(self.state, command, self.now_ms)
        decision = self.do(command)
        assert decision == in_full  # the shortcut for plain reports decides the same
        outcome = decision.outcome
        told = self.book.report(task_id, claimed_ms, self.now_ms, None)
        if told == "unknown":
            assert outcome == TaskUnknown()
        elif told == "closed":
            assert outcome == TaskClosed()
        else:
            assert isinstance(outcome, Beat)
            assert outcome.finished == (told == "finished")
            if told != "finished":
                assert (outcome.stop is None) == (told == "continue"), outcome
            self.compare_task(outcome.task)

    @rule(task_id=st.runner().flatmap(known_tasks), lag_ms=st.sampled_from([-9_000, 0, 0, 12_345]))
    def finish(self, task_id: str, lag_ms: int) -> None:
        claimed_ms = self.claim(task_id, lag_ms)
        command = FinishTask(
            task_id=task_id,
            elapsed_ms=claimed_ms,
            outcome=TaskOutcome.FAILED,
            recalled=Recalled(self.store.recall(task_id)),
        )
        outcome = self.do(command).outcome
        told = self.book.report(task_id, claimed_ms, self.now_ms, "failed")
        expected = {"unknown": TaskUnknown, "closed": TaskClosed}.get(told, Finished)
        assert isinstance(outcome, expected)
        if isinstance(outcome, Finished):
            self.compare_task(outcome.task)

    def claim(self, task_id: str, lag_ms: int) -> int:
        known = self.book.tasks.get(task_id)
        ran_ms = 0 if known is None else known.initial_ms + self.now_ms - known.started_ms
        return max(0, min(ran_ms, 31 * DAY_MS) - lag_ms)

    def compare_task(self, task: Task) -> None:
        known = self.book.tasks[task.info.task_id]
        assert (task.elapsed_ms, task.metered_ms) == (known.elapsed_ms, known.billed_ms)
        assert task.state.value == known.state

    # --- operators ----------------------------------------------------------------------------

    @rule(
        plan=st.sampled_from(list(Tier)),
        minutes=st.sampled_from([0, 1, 2, 3, 5, 8, 13, 20]),
        grace=st.sampled_from([0, 10, 35]),
        agents=st.sampled_from([1, 2, None]),
        in_grace=st.booleans(),
        cents=st.integers(0, 12),
        trialing=st.booleans(),
    )
    def change_terms(
        self,
        plan: Tier,
        minutes: int,
        grace: int,
        agents: int | None,
        in_grace: bool,
        cents: int,
        trialing: bool,
    ) -> None:
        """Upgrade, downgrade, other price: what is recorded stays as it is."""
        contract = Contract(
            agents=agents,
            agent_minutes=minutes,
            grace_percent=grace,
            new_tasks_in_grace=in_grace,
            overage_usd_per_minute=Decimal(cents) / 100,
        )
        self.do(Tick())
        rows, used_ms = list(self.store.rows), self.state.period.used_ms
        self.do(make_change(plan=plan, contract=contract, trialing=trialing))
        self.book.limits = self.book_limits()
        assert self.state.period.used_ms == used_ms
        assert self.store.rows[: len(rows)] == rows
        assert self.state.period.recorded_ms == used_ms or len(self.store.rows) == len(rows)

    @rule(hold=st.sampled_from(list(Hold)), dice=st.integers(0, 3))
    def suspend_or_lift(self, hold: Hold, dice: int) -> None:
        if dice == 0:
            self.do(make_change(place=hold))
            self.book.holds.add(hold.value)
        else:
            self.do(make_change(lift=hold))
            self.book.holds.discard(hold.value)

    @rule(
        agent_ms=st.one_of(
            st.integers(-200_000, 200_000).filter(bool), st.sampled_from([-60_000, 60_000])
        ),
        back=st.integers(0, 2),
    )
    def adjust(self, agent_ms: int, back: int) -> None:
        """Credit or debit the open period or a closed one, however old."""
        self.do(Tick())
        index = len(self.book.periods) - 1 - back
        if index < 0:
            return
        labels = [period.label for period in self.periods()]
        label = labels[index]
        decision = self.do(make_adjust(agent_ms, label=label))
        if isinstance(decision.outcome, NeedsPeriod):
            recalled = self.store.recall_period(label)
            decision = self.do(make_adjust(agent_ms, label=label, recalled=recalled))
        told = self.book.adjust(self.book.periods[index], agent_ms)
        expected = {"credit": CreditExceedsUsage, "debit": ExceedsHardLimit, "booked": Adjusted}
        assert isinstance(decision.outcome, expected[told])
        if isinstance(decision.outcome, Adjusted):
            assert sum(row.quantity_ms for row in decision.outcome.rows) == agent_ms

    # --- restarts -----------------------------------------------------------------------------

    @rule(share=st.integers(0, 100))
    def restart(self, share: int) -> None:
        """Restore what was flushed, then the journal, after a crash; tasks get a fresh time-out."""
        count = len(self.store.facts) * share // 100
        self.book.serving_ms = self.now_ms
        self.state = restore(
            self.store.stored(count, self.now_ms),
            self.store.facts[count:],
            rules=RULES,
            serving_since_ms=self.now_ms,
            now_ms=self.now_ms,
        )

    @rule()
    def forget(self) -> None:
        """Drop ended tasks from memory; the store answers for them."""
        forget_ended(self.state, now_ms=self.now_ms, durable_seq=self.state.seq)

    @rule(share=st.integers(0, 100))
    def replay_gives_the_same(self, share: int) -> None:
        """From any prefix: stored values and the remaining facts give the live state exactly."""
        count = len(self.store.facts) * share // 100
        twin = restore(
            self.store.stored(count, self.now_ms),
            self.store.facts[count:],
            rules=RULES,
            serving_since_ms=self.state.serving_since_ms,
            now_ms=self.now_ms,
        )
        assert billing(twin) == billing(self.state)
        assert set(twin.lost) >= {
            task_id
            for task_id in self.state.lost
            if self.now_ms < (self.state.ended[task_id].ended_at_ms or 0) + DAY_MS
        }
        before = billing(twin)
        for facts in self.store.facts[-3:]:
            apply(twin, facts)
        assert billing(twin) == before

    @precondition(lambda self: bool(self.store.facts))
    @rule()
    def a_gap_is_refused(self) -> None:
        """Stop the actor when a fact is lost, rather than pass over it."""
        last = self.store.facts[-1]
        with pytest.raises(AssertionError):
            apply(self.state, attrs.evolve(last, seq=self.state.seq + 2))

    # --- what must always hold ----------------------------------------------------------------

    def periods(self) -> list[Period]:
        latest = {self.store.first[2].start_ms: self.store.first[2]}
        for facts in self.store.facts:
            latest.update((period.start_ms, period) for period in facts.periods)
        return [latest[start_ms] for start_ms in sorted(latest)]

    @invariant()
    def core_and_book_agree(self) -> None:
        """Counters, projection, state and slots are the book's."""
        if is_due(self.state, self.now_ms):
            return
        self.book.pass_time(self.now_ms)
        assert projected_ms(self.state, self.now_ms) == self.book.projected(self.now_ms)
        assert quota_state(self.state, self.now_ms).value == self.book.quota(self.now_ms)
        assert set(self.state.agents) == self.book.agents()
        assert len(self.state.running) == len(self.book.running())
        periods = self.periods()
        assert [period.used_ms for period in periods] == [p.used_ms for p in self.book.periods]
        assert len({period.label for period in periods}) == len(periods)
        for earlier, later in itertools.pairwise(periods):
            assert earlier.end_ms == later.start_ms

    @invariant()
    def aggregates_are_sums(self) -> None:
        running = self.state.running.values()
        assert self.state.burning_from_sum_ms == sum(task.burning_from_ms for task in running)
        heard = [task.reported_at_ms for task in running]
        assert heard == sorted(heard)
        tasks: dict[str, int] = defaultdict(int)
        for task in running:
            tasks[task.info.agent_id] += 1
        assert self.state.agents == tasks

    @invariant()
    def the_ledger_is_right(self) -> None:
        """Row by row: the chain, the minutes, the price band, the limit, the dates, the sums."""
        rows = self.store.rows
        assert len({row.id for row in rows}) == len(rows)
        all_terms = {1: self.store.first[1]} | {
            facts.terms.seq: facts.terms for facts in self.store.facts if facts.terms
        }
        billed: dict[str, int] = defaultdict(int)
        for period in self.periods():
            total_ms, minutes, overage, cost = 0, 0, 0, Decimal(0)
            for row in (row for row in rows if row.billing_period == period.label):
                limits = all_terms[row.terms_seq].limits
                assert row.recorded_before_ms == total_ms
                total_ms += row.quantity_ms
                minutes += row.quantity
                assert minutes == total_ms // MINUTE_MS
                assert total_ms >= 0
                low_ms, high_ms = sorted((row.recorded_before_ms, total_ms))
                included_ms = limits.included_minutes * MINUTE_MS
                past = low_ms >= included_ms
                assert past or high_ms <= included_ms
                band = Kind.OVERAGE if limits.grace_billed else Kind.FREE_GRACE
                assert row.kind is (band if past else Kind.INCLUDED)
                rate = limits.overage_usd_per_minute if row.kind is Kind.OVERAGE else Decimal(0)
                assert row.total_cost_usd == rate * row.quantity
                assert (
                    row.quantity_ms < 0
                    or limits.hard_limit_ms is None
                    or (total_ms <= limits.hard_limit_ms)
                )
                if row.kind is Kind.OVERAGE:
                    overage += row.quantity
                cost += row.total_cost_usd
                if row.source is Source.TASK and row.task_id is not None:
                    billed[row.task_id] += row.quantity_ms
                    assert row.quantity_ms > 0
                if period is not self.periods()[0]:
                    assert period.start_ms <= row.at_ms < period.end_ms
            assert total_ms == period.recorded_ms
            assert overage == period.overage_minutes
            assert cost == period.overage_usd == period.total_usd
            if period.closed:
                assert period.recorded_ms == period.used_ms
        pending_ms = sum(task.pending_ms for task in self.state.running.values())
        assert self.state.period.recorded_ms + pending_ms == self.state.period.used_ms
        for task_id, known in self.book.tasks.items():
            task = self.store.recall(task_id)
            assert task is not None
            assert billed[task_id] + task.pending_ms == known.billed_ms
            if task.state is not TaskState.RUNNING:
                assert task.pending_ms == 0
                assert billed[task_id] + task.unbilled_ms == known.elapsed_ms


OrganizationMachine.TestCase.settings = settings(
    max_examples=4 * settings().max_examples,
    stateful_step_count=45,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class TestOrganization(OrganizationMachine.TestCase):  # type: ignore[misc,valid-type]  # made by Hypothesis
    """Collected by pytest under a name of its own."""
