"""Planted corruption is found and named, counters are rebuilt, retention leaves the books right."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from meterd.adapters.postgres.audit import audit
from meterd.core.books import BookDifference
from meterd.core.plan import Tier
from meterd.core.task import TaskOutcome
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS
from meterd.errors import OwnershipLostError
from tests.book_world import FEBRUARY_MS, Company, Run
from tests.integration.books.conftest import Office


NOW_MS = FEBRUARY_MS + 20 * DAY_MS


def make_company(tasks: int = 3) -> Company:
    """Return a customer whose tasks ran an hour each, on the first days of February."""
    company = Company(id="org_1", name="One", tier=Tier.STARTER)
    company.runs = [
        Run(
            task_id=f"task-{number}",
            agent_id="agent-1",
            start_ms=FEBRUARY_MS + number * DAY_MS + HOUR_MS,
            ran_ms=HOUR_MS,
            outcome=TaskOutcome.SUCCEEDED,
        )
        for number in range(tasks)
    ]
    return company


async def differences(office: Office) -> Sequence[BookDifference]:
    """Return what the books' reconciliation finds in everything stored."""
    office.clock.at_ms = NOW_MS
    await office.metrics.aggregate(NOW_MS - DAY_MS)
    _, found = await office.upkeep.ledger_differences()
    return (*found, *await office.upkeep.metrics_differences(0))


async def test_good_books_have_no_differences(office: Office) -> None:
    """A reconciliation that cries wolf is switched off."""
    await office.fill([make_company()])

    assert await differences(office) == ()
    tasks, found = await office.upkeep.task_differences(0, NOW_MS)
    assert (tasks, found) == (3, [])


async def test_a_row_deleted_behind_meterds_back_is_found_and_named(office: Office) -> None:
    """The ledger refuses to delete; a superuser can, and three places tell of it."""
    await office.fill([make_company()])
    await office.as_superuser("DELETE FROM usage_records WHERE task_id = 'task-1'")

    found = await differences(office)

    named = {(each.organization_id, each.subject, each.what): each for each in found}
    assert named["org_1", "2026-02", "recorded_ms"].amount == str(HOUR_MS)
    assert ("org_1", "task task-1", "recorded_ms") in named
    assert any(subject.startswith("row ") for _, subject, _ in named)
    [task] = (await office.upkeep.task_differences(0, NOW_MS))[1]
    assert (task.subject, task.expected, task.found) == ("task task-1", str(HOUR_MS), "0")


async def test_a_changed_counter_is_found_and_rebuilt_from_the_ledger(office: Office) -> None:
    """The ledger says 180 minutes; whatever the counter says becomes that, and is audited."""
    await office.fill([make_company()])
    await office.as_superuser(
        "UPDATE subscription_usage SET used_ms = 1, recorded_ms = 1, agent_minutes_used = 0, "
        "overage_minutes = 7, total_cost_exact = 3, total_cost_usd = 3"
    )
    assert {each.subject for each in await differences(office)} == {"2026-02"}

    rebuilt = await office.upkeep.rebuild_counters(
        office.store.epoch, organization_id=None, at_ms=NOW_MS
    )

    assert [(each.wrong_used_ms, each.used_ms) for each in rebuilt] == [(1, 3 * HOUR_MS)]
    assert await differences(office) == ()
    again = await office.upkeep.rebuild_counters(
        office.store.epoch, organization_id=None, at_ms=NOW_MS
    )
    assert again == []
    [entry] = await office.query("SELECT * FROM audit_log WHERE action = 'counters.rebuild'")
    assert json.loads(entry["before"])["used_ms"] == 1
    assert json.loads(entry["after"])["used_ms"] == 3 * HOUR_MS


async def test_only_the_owner_rebuilds(office: Office) -> None:
    """A command that lost the database to a new meterd must not write under it."""
    await office.fill([make_company()])

    with pytest.raises(OwnershipLostError):
        await office.upkeep.rebuild_counters(
            office.store.epoch - 1, organization_id=None, at_ms=NOW_MS
        )


async def test_changed_daily_metrics_are_found_when_their_period_is_over(office: Office) -> None:
    """Reports are made from the metrics, so they are held against the ledger too."""
    await office.fill([make_company()])
    office.clock.at_ms = NOW_MS
    await office.metrics.aggregate(FEBRUARY_MS + 30 * DAY_MS)
    await office.as_superuser(
        "UPDATE subscription_usage SET closed = true",
        "UPDATE usage_records SET recorded_at = recorded_at - interval '1 day'",
        "UPDATE daily_metrics SET quantity_ms = quantity_ms + 60000 WHERE day = '2026-02-02'",
    )

    [found] = await office.upkeep.metrics_differences(FEBRUARY_MS)

    assert (found.organization_id, found.subject, found.amount) == (
        "org_1",
        "2026-02",
        str(MINUTE_MS),
    )


async def test_a_difference_is_one_finding_a_day_however_often_it_is_seen(office: Office) -> None:
    """The hourly check does not fill the list; the next day tells it again."""
    difference = BookDifference(
        kind="ledger_difference",
        organization_id="org_1",
        subject="2026-02",
        what="recorded_ms",
        expected="10",
        found="7",
    )
    assert await office.jobs.add_findings([difference.finding(NOW_MS)]) == 1
    assert await office.jobs.add_findings([difference.finding(NOW_MS + HOUR_MS)]) == 0
    assert await office.jobs.add_findings([difference.finding(NOW_MS + DAY_MS)]) == 1

    newest, oldest = await office.jobs.findings(
        before=(NOW_MS + 9 * DAY_MS, ""), kind=None, organization_id="org_1", limit=10
    )
    assert newest.at_ms > oldest.at_ms
    assert json.loads(oldest.detail_json)["amount"] == "-3"


async def test_retention_drops_old_tasks_and_the_books_still_agree(office: Office) -> None:
    """Rows stay for ever; the audit knows up to where tasks are gone on purpose, and no further."""
    await office.fill([make_company(5)])
    before_ms = FEBRUARY_MS + 2 * DAY_MS

    assert await office.upkeep.drop_tasks(before_ms) == 2
    assert await office.upkeep.drop_tasks(before_ms) == 0

    assert (await audit(office.pools)).differences == ()
    await office.as_superuser("DELETE FROM tasks WHERE task_id = 'task-4'")
    assert {each.subject for each in (await audit(office.pools)).differences} == {"task task-4"}


async def test_an_ended_period_is_overdue_until_somebody_looks(office: Office) -> None:
    """Organizations that sleep over the end of a month are found by the clock alone."""
    await office.fill([make_company()])
    march_ms = FEBRUARY_MS + 28 * DAY_MS

    assert await office.upkeep.overdue(march_ms - 1, payment_grace_ms=DAY_MS) == []
    assert await office.upkeep.overdue(march_ms, payment_grace_ms=DAY_MS) == ["org_1"]
