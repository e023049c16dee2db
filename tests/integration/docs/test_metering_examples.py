"""The worked numbers of docs/explanation/metering.md, computed by the code that bills."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from meterd.core.commands import Heartbeat
from meterd.core.organization import OrganizationState
from meterd.core.plan import Contract
from meterd.core.quota import next_wakeup_ms
from meterd.core.units import MINUTE_MS, SECOND_MS
from meterd.core.usage import Origin, Source, UsageRow, book_agent_time
from tests.integration.docs.pages import ROOT
from tests.organizations import (
    MARCH_MS,
    NOON_MS,
    drive,
    make_finish,
    make_period,
    make_state,
    make_terms,
    start,
)


PAGE = (ROOT / "docs/explanation/metering.md").read_text(encoding="utf-8")
EXAMPLES = dict(
    re.findall(r"<!-- example: (\w+) -->\n?(.*?)\n?<!-- end -->", PAGE, flags=re.DOTALL)
)


def cells(example: str) -> list[list[str]]:
    """Return the cells of an example's table, heading and rule left out."""
    lines = EXAMPLES[example].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def book(durations_ms: Sequence[int], *, used_ms: int = 0) -> Iterator[UsageRow]:
    """Yield the rows of times that are recorded one after the other."""
    period, terms = make_period(used_ms=used_ms), make_terms()
    for number, duration_ms in enumerate(durations_ms, start=1):
        origin = Origin(organization_id="org_1", seq=number, source=Source.TASK, at_ms=NOON_MS)
        period, rows = book_agent_time(period, terms, duration_ms, origin, ordinal=0)
        yield from rows


def run_tasks(state: OrganizationState, seconds: Sequence[int]) -> Iterator[tuple[str, UsageRow]]:
    """Run tasks one after the other, each with truthful reports, and yield the rows."""
    now_ms = NOON_MS
    for number, length_s in enumerate(seconds, start=1):
        task_id = f"task {number}"
        start(state, task_id, now_ms=now_ms)
        now_ms += length_s * SECOND_MS
        decision = drive(state, make_finish(task_id, length_s * SECOND_MS), now_ms)
        assert decision.facts is not None
        for row in decision.facts.rows:
            yield task_id, row


def test_minutes_telescope_as_the_table_shows() -> None:
    """A customer who adds up the rows by hand must get what is billed."""
    rows = list(book([50_000, 50_000, 50_000, 40_000]))
    table = [
        [
            str(number),
            f"{row.quantity_ms:,}",
            f"{row.recorded_before_ms:,}",
            f"{row.recorded_before_ms + row.quantity_ms:,}",
            str(row.quantity),
        ]
        for number, row in enumerate(rows, start=1)
    ]
    total = [
        f"{sum(row.quantity_ms for row in rows):,}",
        "",
        "",
        str(sum(r.quantity for r in rows)),
    ]

    assert cells("telescoping") == [*table, ["sum", *total]]


def test_rows_end_at_the_lines_as_the_table_shows() -> None:
    """Where a price changes and where billing ends is what disputes are about."""
    state = make_state(contract=Contract(agent_minutes=2))
    table = [
        [
            task_id,
            row.kind.value,
            f"{row.quantity_ms:,}",
            f"{row.recorded_before_ms + row.quantity_ms:,}",
            str(row.quantity),
            str(row.total_cost_usd),
        ]
        for task_id, row in run_tasks(state, [50, 50, 50])
    ]
    last = state.ended["task 3"]

    assert cells("lines") == table
    assert (last.elapsed_ms, last.metered_ms, last.unbilled_ms) == (50_000, 32_000, 18_000)
    assert "of which 32,000 are billed and 18,000 are `unbilled_ms`" in PAGE


def test_the_instant_of_exhaustion_is_the_one_named() -> None:
    """The page promises a stop without a heartbeat, at this very millisecond."""
    state = make_state(contract=Contract(agent_minutes=10), used_ms=11 * MINUTE_MS - 54_000)
    for number in (1, 2, 3):
        start(state, f"task {number}", f"agent {number}")

    assert next_wakeup_ms(state, NOON_MS) - NOON_MS == 18_000
    assert (
        "54,000 ms left and 3 tasks running, `stop` is pushed 18,000 ms" in EXAMPLES["exhaustion"]
    )


def test_a_report_across_a_boundary_is_split_as_described() -> None:
    """Time belongs to the period it ran in, whatever the report's own moment."""
    before_ms = MARCH_MS - 60_000
    state = make_state(at_ms=before_ms)
    start(state, "task 1", now_ms=before_ms)
    drive(state, Heartbeat("task 1", 90_000), MARCH_MS + 30_000)
    (old,) = state.closed_periods

    assert (state.period.used_ms, old.used_ms) == (30_000, 60_000)
    assert "30,000 ms land in the new period and 60,000 ms in the old" in EXAMPLES["boundary"]


def test_a_credit_rounds_like_any_time() -> None:
    """The floor is mathematical: what a credit takes, the same debit gives back."""
    credit, debit = book([-1, 1], used_ms=3 * MINUTE_MS)

    assert (credit.quantity, debit.quantity) == (-1, 1)
    assert "exactly 3 minutes has `quantity` -1, and a debit" in EXAMPLES["credit"]
    assert "has `quantity` 1." in EXAMPLES["credit"]
