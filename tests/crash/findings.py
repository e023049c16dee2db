"""What a trial found: the agents' own books against the database, task by task.

Rule 1: nothing here asks meterd; the database is read with SQL of our own.
Rule 2: `lost` and `doubled` are milliseconds of agent time and must be zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import attrs

from tests.crash.agents import Ledger
from tests.integration.service.books import audit, query


class NotHereError(Exception):
    """A trial needs what this machine does not give; says what."""


@attrs.define(kw_only=True)
class Findings:
    """Sums over trials, and every broken promise as a sentence."""

    cycles: int = 0
    tasks: int = 0
    acknowledgements: int = 0
    resent: int = 0
    reconnects: int = 0
    lost_ms: int = 0
    doubled_ms: int = 0
    over_ms: int = 0
    recoveries_s: list[float] = attrs.Factory(list)
    stops_s: list[float] = attrs.Factory(list)
    tight: list[str] = attrs.Factory(list)
    """Organizations that were driven past their hard limit."""
    broken: list[str] = attrs.Factory(list)

    def expect(self, is_true: object, otherwise: str) -> None:
        """Note a broken promise unless it was kept."""
        if not is_true:
            self.broken.append(otherwise)

    def count(self, ledger: Ledger) -> None:
        """Take over what the agents counted."""
        self.tasks += len(ledger.ran_ms)
        self.acknowledgements += ledger.acknowledgements
        self.resent += ledger.resent
        self.reconnects += max(0, ledger.connections - 1)
        self.broken += ledger.errors

    async def compare_acknowledged(self, database_url: str, acknowledged: dict[str, int]) -> None:
        """Everything acknowledged by now is in the tables, read before anybody can repair it."""
        rows = await query(database_url, "SELECT task_id, elapsed_ms FROM tasks")
        stored = {row["task_id"]: row["elapsed_ms"] for row in rows}
        for task_id, durable_ms in acknowledged.items():
            missing_ms = durable_ms - stored.get(task_id, -1)
            if missing_ms > 0:
                self.lost_ms += missing_ms
                self.broken.append(f"{task_id}: {durable_ms} ms acknowledged, {missing_ms} missing")

    async def compare_ran(self, database_url: str, ledger: Ledger) -> None:
        """Every millisecond that ran is in the ledger once."""
        rows = await query(
            database_url,
            "SELECT task_id, sum(quantity_ms)::bigint AS ms FROM usage_records "
            "WHERE organization_id = 'load' AND resource_type = 'agent_minute' GROUP BY task_id",
        )
        stored = {row["task_id"]: row["ms"] for row in rows}
        for task_id in stored.keys() | ledger.ran_ms.keys():
            difference_ms = stored.get(task_id, 0) - ledger.ran_ms.get(task_id, 0)
            self.lost_ms += max(0, -difference_ms)
            self.doubled_ms += max(0, difference_ms)
            self.expect(not difference_ms, f"{task_id}: ledger - ran = {difference_ms} ms")
        unfinished = ledger.ran_ms.keys() - ledger.finished
        self.expect(not unfinished, f"ends never acknowledged: {sorted(unfinished)}")

    async def audit(self, *options: str) -> None:
        """`meterd audit` finds nothing."""
        code, report = await audit(*options)
        self.expect(code == 0 and not report["differences"], f"audit: {report}")


def total(all_findings: Sequence[Findings]) -> Findings:
    """Return the sum of several findings."""
    summed = Findings()
    for found in all_findings:
        for field in attrs.fields(Findings):
            value = getattr(summed, field.name) + getattr(found, field.name)
            setattr(summed, field.name, value)
    return summed


def quantile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that `percent` of the values do not exceed."""
    assert values, "of nothing"
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(0, rank - 1)]


def exhausted_at_s(started_at_s: Sequence[float], budget_ms: int) -> float:
    """Return when tasks that started at these instants have used the budget together."""
    left_s = Fraction(budget_ms, 1_000)
    starts = [Fraction(start_s) for start_s in sorted(started_at_s)]
    for running, (now_s, next_s) in enumerate(itertools.pairwise(starts), start=1):
        if (next_s - now_s) * running >= left_s:
            return float(now_s + left_s / running)
        left_s -= (next_s - now_s) * running
    return float(starts[-1] + left_s / len(starts))
