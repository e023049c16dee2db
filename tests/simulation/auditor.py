"""The auditor: an independent second opinion that shares no rule with the core.

It knows what every agent claimed and what meterd acknowledged, reads what is stored, and does the
sums again in the most naive way there is. `Violation` says what promise was broken.
Promises are numbered as in the contract's invariants (I1 …) and the published promises (P1 …).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any

from meterd.adapters.memory.store import Database, OrganizationRecord
from tests.simulation.clients import Run
from tests.simulation.network import Client, Server
from tests.simulation.violation import expect


PLANS: dict[str, tuple[int | None, int, int, str, bool, bool]] = {
    # agents, minutes, grace percent, rate, is grace billed, never stops
    "free": (1, 100, 10, "0.05", False, False),
    "starter": (5, 1_000, 10, "0.05", True, False),
    "pro": (20, 10_000, 10, "0.05", True, False),
    "enterprise": (None, 0, 10, "0.05", True, True),
}
TASKS_PER_AGENT = 8
TASKS_PER_ORGANIZATION = 10_000
CAP_REASON = "cap"
"""Why terms change when a customer changes the cap, and for no other reason."""
PUNCTUAL_MS = 2_500
TOLERANCE_MS = 5_000
START_ELAPSED_MS = 300_000


def limits(terms: Any) -> tuple[int | None, int, int | None, Decimal, str]:
    """Return agents, included ms, hard limit ms, rate and kind past the line; naively."""
    agents, minutes, grace, rate, billed, never = PLANS[terms.plan.value]
    contract = terms.contract
    if isinstance(contract.agents, int) or contract.agents is None:
        agents = contract.agents
    if isinstance(contract.agent_minutes, int):
        minutes = contract.agent_minutes
    if isinstance(contract.grace_percent, int):
        grace = contract.grace_percent
    if isinstance(contract.overage_usd_per_minute, Decimal):
        rate = str(contract.overage_usd_per_minute)
    included = minutes * 60_000
    hard = None if never else included + included * grace // 100
    return agents, included, hard, Decimal(rate), "overage" if billed else "free_grace"


def stop_line_ms(record: OrganizationRecord) -> int:
    """Return the use past which nothing is billed where there is a limit; minute by minute."""
    terms, period = record.terms[max(record.terms)], record.periods[max(record.periods)][1]
    _, included_ms, hard_ms, rate, kind = limits(terms)
    cap, minutes = terms.limits.overage_cap_usd, period.recorded_ms // 60_000
    assert hard_ms is not None
    if cap is None or kind != "overage":
        return hard_ms
    rows = [row for row in record.rows.values() if row.billing_period == period.label]
    overage = (row.unit_cost_usd * row.quantity for row in rows if row.kind.value == "overage")
    billed = sum(overage, Decimal(0))
    while minutes * 60_000 < hard_ms:
        billed += rate if (minutes + 1) * 60_000 > included_ms else 0
        if billed > cap:
            break
        minutes += 1
    return min(minutes * 60_000, hard_ms)


def _place(row: Any) -> tuple[bool, int]:
    """Return where a row stands among those of its fact: a credit comes last, and goes back."""
    is_credit = row.quantity_ms < 0
    return is_credit, -row.recorded_before_ms if is_credit else row.recorded_before_ms


class Auditor:
    """Watches one world."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.claims: dict[tuple[str, str], int] = defaultdict(int)
        self.first_claims_ms: dict[tuple[str, str], int] = {}
        self.rows: dict[str, dict[str, Any]] = defaultdict(dict)
        self.running: dict[str, set[str]] = defaultdict(set)
        self.terms_seen: dict[str, int] = defaultdict(lambda: 1)
        self.latest_ends_ms: dict[tuple[str, str], int] = defaultdict(int)
        """By organization and label. A period that is cut short later keeps its rows."""
        self.orders: dict[str, tuple[str, int, bool]] = {}
        self.caps_asked: dict[str, set[Decimal | None]] = defaultdict(lambda: {None})
        self.acknowledged = 0
        self.tasks_max = TASKS_PER_ORGANIZATION
        self.is_punctual = False
        """Reports arrive when they are sent: only then can be told when the time was run."""
        self.late_start_ms = 0
        """How much longer than its client waits for it a start may be under way."""
        self.wall_ms = 0
        self.wall_ahead_ms = 0
        self.was_clock_set_back = False

    # --- what is said --------------------------------------------------------------------------

    def client_says(self, client: Client, message: dict[str, Any], now_ms: int) -> None:
        """Remember the largest claim for each task, and when it was first spoken of."""
        key = (client.organization_id, message["task_id"])
        self.claims[key] = max(self.claims[key], message.get("elapsed_ms", 0))
        if message["type"] == "start":
            self.first_claims_ms.setdefault(key, now_ms)

    def server_says(self, server: Server, client: Client, message: dict[str, Any]) -> None:
        """P1: what is acknowledged is in the store at that moment."""
        kind = message["type"]
        if kind not in {"ack", "started", "finished", "denied"}:
            return
        organization_id, task_id = client.organization_id, message["task_id"]
        stored = self.database.organizations[organization_id].tasks.get(task_id)
        if kind == "denied":
            if server.epoch == self.database.epoch:
                # An ended task may be refused while the store cannot be asked about it.
                is_running = stored is not None and stored.state.value == "running"
                expect(not is_running, "a refusal leaves no trace", task_id)
            return
        self.acknowledged += 1
        expect(stored is not None, "P1 acknowledged and not stored", message)
        assert stored is not None
        elapsed_ms = message.get("elapsed_ms", 0)
        if not message.get("clamped"):
            expect(stored.elapsed_ms >= elapsed_ms, "P1 acknowledged and not stored", message)
        if kind == "finished":
            expect(stored.state.value == "finished", "P1 finished is stored", message)
            expect(stored.metered_ms == message["metered_ms"], "P1 metered is stored", message)
        elif kind == "ack":
            expect(stored.metered_ms >= message["metered_ms"], "P1 metered is stored", message)

    # --- what is stored ------------------------------------------------------------------------

    def on_flush(self, batches: Sequence[Any]) -> None:
        """Look at what a transaction left behind."""
        for batch in batches:
            organization_id = batch.organization_id
            record = self.database.organizations[organization_id]
            for _, period in record.periods.values():
                self._saw_end(organization_id, period)
            for row in batch.rows:
                known = self.rows[organization_id].setdefault(row.id, row)
                expect(known == row, "rows are append-only", row.id)
            for task in (*batch.started, *batch.moved):
                self._check_claim(organization_id, record.tasks.get(task.task_id))
            self._check_slots(organization_id, record, batch)

    def _saw_end(self, organization_id: str, period: Any) -> None:
        key = (organization_id, period.label)
        self.latest_ends_ms[key] = max(self.latest_ends_ms[key], period.end_ms)

    def _check_claim(self, organization_id: str, task: Any) -> None:
        """Nothing is counted that nobody claimed, nor more than time has passed."""
        if task is None:
            return
        key = (organization_id, task.task_id)
        expect(
            task.elapsed_ms <= self.claims[key],
            "P2 more is counted than was ever claimed",
            task.task_id,
            task.elapsed_ms,
            self.claims[key],
        )
        since_ms = self.wall_ms - self.first_claims_ms.get(key, self.wall_ms)
        most_ms = since_ms + START_ELAPSED_MS + TOLERANCE_MS + self.wall_ahead_ms
        expect(task.elapsed_ms <= most_ms, "implausible time was counted", task.task_id)

    def _check_slots(self, organization_id: str, record: OrganizationRecord, batch: Any) -> None:
        """I4: no agent is admitted beyond the plan's agents."""
        tasks_of: dict[str, int] = defaultdict(int)
        for task in record.tasks.values():
            if task.state.value == "running":
                tasks_of[task.info.agent_id] += 1
        before, after = self.running[organization_id], set(tasks_of)
        self.running[organization_id] = after
        allowed = [limits(record.terms[self.terms_seen[organization_id]])[0]]
        allowed += [limits(terms)[0] for terms in batch.terms]
        self.terms_seen[organization_id] = max(record.terms)
        if after - before and None not in allowed:
            most = max(agents for agents in allowed if agents is not None)
            expect(len(after) <= most, "I4 admitted without a slot", sorted(after), most)
        expect(max(tasks_of.values(), default=0) <= TASKS_PER_AGENT, "I4 too many tasks", tasks_of)
        running = sum(tasks_of.values())
        expect(running <= self.tasks_max, "I4 too many tasks at once", running, self.tasks_max)

    def audit(self) -> None:
        """I1-I4 for everything that is stored; a flush is one transaction, so it always holds."""
        for organization_id, record in self.database.organizations.items():
            expect(
                record.rows == self.rows[organization_id], "rows are append-only", organization_id
            )
            self._audit_caps(organization_id, record)
            self._audit_periods(organization_id, record)
            by_task: dict[str, int] = defaultdict(int)
            for row in record.rows.values():
                if row.source.value == "task" and row.task_id is not None:
                    by_task[row.task_id] += row.quantity_ms
            for task in record.tasks.values():
                facts = (task.task_id, task.state.value, task.elapsed_ms, task.metered_ms)
                summed = by_task.pop(task.task_id, 0)
                expect(summed == task.recorded_ms, "I2 rows of a task", *facts, summed)
                expect(task.metered_ms <= task.elapsed_ms, "I2 billed more than ran", *facts)
                if task.state.value != "running":
                    expect(task.metered_ms == summed, "I2 an ended task has all its rows", *facts)
            expect(not by_task, "rows of unknown tasks", by_task)

    def _audit_periods(self, organization_id: str, record: OrganizationRecord) -> None:
        periods = [period for _, (_, period) in sorted(record.periods.items())]
        for earlier, later in pairwise(periods):
            expect(earlier.end_ms == later.start_ms, "periods have no gap", earlier, later)
            expect(earlier.closed, "one period is open", earlier)
        expect(not periods[-1].closed, "one period is open", periods[-1])
        pending = sum(task.metered_ms - task.recorded_ms for task in record.tasks.values())
        for period in periods:
            self._saw_end(organization_id, period)
            end_ms = self.latest_ends_ms[organization_id, period.label]
            rows = sorted(
                (
                    row
                    for row in record.rows.values()
                    if row.billing_period == period.label and row.resource.value == "agent_minute"
                ),
                key=lambda row: (row.seq, row.id),
            )
            self._audit_rows(record, period, rows, end_ms, is_first=period is periods[0])
            open_ms = 0 if period.closed else pending
            facts = (period.label, period.used_ms, period.recorded_ms, open_ms)
            expect(period.used_ms == period.recorded_ms + open_ms, "I1 used", *facts)

    def _audit_rows(
        self,
        record: OrganizationRecord,
        period: Any,
        rows: Sequence[Any],
        end_ms: int,
        *,
        is_first: bool,
    ) -> None:
        total_ms = sum(row.quantity_ms for row in rows)
        expect(total_ms == period.recorded_ms, "I1 rows of a period", period.label, total_ms)
        minutes = sum(row.quantity for row in rows)
        expect(minutes == total_ms // 60_000, "I1 whole minutes", period.label, minutes)
        overage = sum(row.quantity for row in rows if row.kind.value == "overage")
        expect(overage == period.overage_minutes, "I1 overage", period.label)
        befores = sorted(row.recorded_before_ms for row in rows)
        self._audit_cap(record, rows)
        if all(row.quantity_ms > 0 for row in rows):
            at_ms = 0
            for row in sorted(rows, key=lambda row: row.recorded_before_ms):
                expect(row.recorded_before_ms == at_ms, "rows form a chain", row.id, befores)
                at_ms += row.quantity_ms
        for row in rows:
            _, included, hard, rate, past_kind = limits(record.terms[row.terms_seq])
            before, after = row.recorded_before_ms, row.recorded_before_ms + row.quantity_ms
            low, high = min(before, after), max(before, after)
            facts = (row.id, row.kind.value, low, high, included, hard)
            if row.quantity_ms > 0 and hard is not None:
                expect(high <= hard, "I4 billed past the hard limit", *facts)
            past = row.kind.value != "included"
            expect(low >= included if past else high <= included, "a row has one price", *facts)
            if past:
                expect(row.kind.value == past_kind, "the price band", *facts)
            price = rate if row.kind.value == "overage" else Decimal(0)
            expect(row.unit_cost_usd == price, "the price of a minute", *facts)
            expect(row.total_cost_usd == price * row.quantity, "the price of a row", *facts)
            is_honest = row.task_id is not None and row.task_id.startswith("task_")
            if is_honest and self.is_punctual and not is_first:
                begin_ms = row.at_ms + 1 - row.quantity_ms + PUNCTUAL_MS
                expect(begin_ms >= period.start_ms, "time is billed where it ran", *facts)
            is_within = period.start_ms <= row.at_ms < end_ms
            expect(is_within or row.at_ms < period.start_ms, "a row lies in its period", *facts)

    def _audit_cap(self, record: OrganizationRecord, rows: Sequence[Any]) -> None:
        """Nothing is billed past the customer's cap: naively, row by row as they were booked."""
        billed = Decimal(0)
        overage = [row for row in rows if row.kind.value == "overage"]
        for row in sorted(overage, key=lambda row: (row.seq, _place(row))):
            cap = record.terms[row.terms_seq].limits.overage_cap_usd
            if cap is not None and row.unit_cost_usd and row.quantity_ms > 0:
                paid = max(0, int((cap - billed) // row.unit_cost_usd))
                line_ms = (row.recorded_before_ms // 60_000 + paid) * 60_000
                after_ms = row.recorded_before_ms + row.quantity_ms
                facts = (row.id, row.recorded_before_ms, after_ms, line_ms, billed, cap)
                expect(after_ms <= line_ms, "I4 counted past the cap", *facts)
            billed += row.unit_cost_usd * row.quantity

    def _audit_caps(self, organization_id: str, record: OrganizationRecord) -> None:
        """Hold a cap to what the customer made it: no plan, contract or payment changes it."""
        before = None
        for _, terms in sorted(record.terms.items()):
            cap = terms.limits.overage_cap_usd
            asked = self.caps_asked[organization_id] if terms.reason == CAP_REASON else {before}
            expect(cap in asked, "the cap that was asked for", terms, before)
            before = cap

    # --- orders of customers ---------------------------------------------------------------------

    def on_cap(self, organization_id: str, cap: Decimal | None) -> int:
        """Know a cap that may come to be; returns the terms it would follow."""
        self.caps_asked[organization_id].add(cap)
        return max(self.database.organizations[organization_id].terms)

    def on_cap_acknowledged(self, organization_id: str, cap: Decimal | None, since: int) -> None:
        """P1: a cap that is answered is in force, or was until a later one."""
        terms = self.database.organizations[organization_id].terms
        caps = [each.limits.overage_cap_usd for seq, each in terms.items() if seq >= since]
        expect(cap in caps, "P1 an acknowledged cap", organization_id, cap, caps)

    # --- orders of operators -------------------------------------------------------------------

    def on_order(self, reason: str, organization_id: str, agent_ms: int) -> None:
        """Know an adjustment that may come to be."""
        self.orders[reason] = (organization_id, agent_ms, False)

    def on_order_acknowledged(self, reason: str) -> None:
        """P1 and P2 for an adjustment."""
        organization_id, agent_ms, _ = self.orders[reason]
        self.orders[reason] = (organization_id, agent_ms, True)
        self.acknowledged += 1
        self._check_order(reason)

    def _check_order(self, reason: str) -> None:
        organization_id, agent_ms, is_acknowledged = self.orders[reason]
        record = self.database.organizations[organization_id]
        booked_ms = sum(
            row.quantity_ms
            for row in record.rows.values()
            if row.source.value == "adjustment"
            and json.loads(row.metadata_json).get("reason") == reason
        )
        expect(
            booked_ms == agent_ms if is_acknowledged else booked_ms in (0, agent_ms),
            "P2 an adjustment counts once",
            reason,
            booked_ms,
            agent_ms,
        )

    # --- the live actor ------------------------------------------------------------------------

    def compare_live(self, state: Any, now_ms: int, timeout_ms: int) -> None:
        """I5: with nothing waiting, what the actor believes is what the store says."""
        record = self.database.organizations[state.organization_id]
        period = record.periods[max(record.periods)][1]
        running = {t.task_id: t for t in record.tasks.values() if t.state.value == "running"}
        agents = {task.info.agent_id for task in running.values()}
        facts = (state.organization_id, state.seq, record.seq)
        expect(set(state.running) == set(running), "I5 running tasks", *facts)
        expect(set(state.agents) == agents, "I5 slots", *facts)
        expect(state.period.used_ms == period.used_ms, "I5 used", *facts)
        expect(state.period.recorded_ms == period.recorded_ms, "I5 recorded", *facts)
        expect(state.terms == record.terms[max(record.terms)], "I5 terms", *facts)
        expect(state.profile.holds == record.profile.holds, "I5 holds", *facts)
        burning = state.running.values()
        is_sane = all(task.burning_from_ms <= now_ms for task in burning)
        expect(is_sane, "I5 nobody burns less than nothing", *facts, now_ms)
        # A report from before the clock was set back lies in the future of the next process.
        if period.start_ms <= now_ms < period.end_ms and not self.was_clock_set_back:
            burning_ms = sum(
                min(now_ms - max(task.reported_at_ms, period.start_ms), timeout_ms)
                for task in running.values()
            )
            seen_ms = state.period.used_ms + sum(
                min(now_ms - task.burning_from_ms, timeout_ms) for task in state.running.values()
            )
            projected_ms = period.used_ms + burning_ms
            expect(seen_ms == projected_ms, "I5 projected", *facts, seen_ms, projected_ms)
            total_ms = len(state.running) * now_ms - state.burning_from_sum_ms
            exact_ms = sum(now_ms - task.burning_from_ms for task in state.running.values())
            expect(total_ms == exact_ms, "I5 the sum of burning time", *facts)

    # --- the end -------------------------------------------------------------------------------

    def conclude(self, runs: Sequence[Run], *, lost_ms: int) -> None:
        """P6: after the faults everything is there, and every honest task is exact."""
        self.audit()
        for reason in self.orders:
            self._check_order(reason)
        for run in runs:
            stored = self.database.organizations[run.organization_id].tasks.get(run.task_id)
            facts = (run.task_id, run.ran_ms, run.settled_ms, stored)
            if run.acked_ms:
                expect(stored is not None, "P1 acknowledged and not stored", *facts)
            if stored is not None and not run.is_clamped and not run.is_orphan:
                expect(stored.elapsed_ms >= run.acked_ms, "P1 an acknowledged report", *facts)
            if run.is_orphan or run.error is not None or run.begun_s is None:
                continue
            if run.is_local and run.gave_up is not None:
                continue  # it began without meterd; then a copy of its start was refused
            expect(run.gave_up is None, "P6 an honest end was given up", run.gave_up, *facts)
            expect(run.settled_ms is not None, "P6 an honest end is not settled", *facts)
            assert stored is not None
            assert run.ran_ms is not None
            expect(stored.state.value == "finished", "P6 settled and not finished", *facts)
            expect(stored.metered_ms == run.settled_ms, "P6 settled as stored", *facts)
            outcome = None if stored.outcome is None else stored.outcome.value
            expect(outcome == run.outcome, "P6 the outcome", *facts)
            # Who did not wait for a start under way is not believed what ran before it arrived.
            late_ms = self.late_start_ms if run.is_local else 0
            least_ms = run.ran_ms - lost_ms - late_ms
            is_exact = least_ms <= stored.elapsed_ms <= run.ran_ms
            expect(is_exact, "P6 an honest task is exact", *facts)
