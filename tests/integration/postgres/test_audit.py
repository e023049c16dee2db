"""The audit on real PostgreSQL: silent on honest lives, and it names whatever was tampered with."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from meterd.adapters.postgres.audit import audit
from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.store import PostgresStore
from meterd.core.journal import coalesce
from meterd.core.plan import Contract, Tier
from tests.journeys import live, make_newborn
from tests.make import FixedClock
from tests.organizations import make_state


pytestmark = pytest.mark.slow


@pytest.fixture
async def lived(pools: PostgresPools) -> PostgresPools:
    """Give a database in which an organization has lived for months."""
    await store_life(pools, 3)
    return pools


async def store_life(pools: PostgresPools, seed: int) -> None:
    """Store the life of an organization, org_1, with small limits, so that it meets them."""
    store = PostgresStore(pools, epoch=0, clock=FixedClock())
    state = make_state(Tier.STARTER, Contract(agent_minutes=30))
    await store.create_organization(make_newborn(state))
    facts, _ = live(state, seed)
    for at in range(0, len(facts), 7):
        await store.flush([coalesce("org_1", facts[at : at + 7])])


async def tamper(pools: PostgresPools, *statements: str) -> None:
    """Change the tables as only a superuser can: without triggers and foreign keys."""

    async def work(connection: Connection) -> None:
        async with connection.transaction():
            await connection.execute("SET LOCAL session_replication_role = replica")
            for text in statements:
                statement = text
                for name, place in PLACES.items():
                    statement = statement.replace(name, place)
                assert not (await connection.execute(statement)).endswith(" 0"), statement

    await pools.write("tamper", work)


@pytest.mark.parametrize("seed", range(8))
async def test_an_honest_life_has_no_differences(pools: PostgresPools, seed: int) -> None:
    """Lost tasks, credits, plan changes and period ends included: a false alarm is a bug too."""
    await store_life(pools, seed)

    found = await audit(pools)

    assert found.differences == ()
    assert found.organizations == 1


PLACES = {
    "ONE_ROW": "(SELECT id FROM usage_records WHERE source = 'task' AND quantity > 0"
    " ORDER BY seq LIMIT 1)",
    "ONE_TASK": "(SELECT task_id FROM tasks WHERE state = 'finished' AND recorded_ms > 0 LIMIT 1)",
}
"""Names that stand in the statements below."""

TAMPERED = {
    "a row removed": (
        "DELETE FROM usage_records WHERE id = ONE_ROW",
        {("sums", "recorded_ms"), ("tasks", "recorded_ms"), ("chain", "recorded_before_ms")},
    ),
    "a row's time changed": (
        "UPDATE usage_records SET quantity_ms = quantity_ms + 1 WHERE id = ONE_ROW",
        {("sums", "recorded_ms"), ("tasks", "recorded_ms"), ("chain", "recorded_before_ms")},
    ),
    "a row's minutes changed": (
        (
            "UPDATE usage_records SET quantity = quantity + 1,"
            " total_cost = unit_cost * (quantity + 1) WHERE id = ONE_ROW"
        ),
        {("rows", "quantity"), ("sums", "whole minutes of the rows")},
    ),
    "a row's price changed": (
        (
            "UPDATE usage_records SET unit_cost = 0.9, total_cost = 0.9 * quantity"
            " WHERE id = ONE_ROW"
        ),
        {("rows", "unit_cost"), ("sums", "total_cost_exact")},
    ),
    "a row's band changed": (
        (
            "UPDATE usage_records SET kind = 'overage' WHERE id = (SELECT id FROM usage_records"
            " WHERE kind = 'included' AND quantity > 0 ORDER BY seq LIMIT 1)"
        ),
        {("rows", "kind"), ("rows", "unit_cost"), ("sums", "overage_minutes")},
    ),
    "a row's terms made up": (
        "UPDATE usage_records SET terms_seq = 99 WHERE id = ONE_ROW",
        {("rows", "terms")},
    ),
    "a row past the hard limit": (
        (
            "UPDATE organization_terms SET limits = jsonb_set(limits, '{hard_limit_ms}', '1')"
            " WHERE terms_seq = (SELECT min(terms_seq) FROM usage_records WHERE quantity_ms > 0)"
        ),
        {("rows", "hard limit")},
    ),
    "used time changed": (
        (
            "UPDATE subscription_usage SET used_ms = used_ms + 60000, agent_minutes_used ="
            " agent_minutes_used + 1 WHERE closed"
        ),
        {("used", "used_ms")},
    ),
    "a rounded total changed": (
        "UPDATE subscription_usage SET total_cost_usd = total_cost_usd + 0.01",
        {("sums", "total_cost_usd")},
    ),
    "whole minutes changed": (
        "UPDATE subscription_usage SET agent_minutes_used = agent_minutes_used + 1",
        {("sums", "agent_minutes_used")},
    ),
    "a period moved": (
        "UPDATE subscription_usage SET period_end = period_end - interval '1 day' WHERE closed",
        {("periods", "period_end")},
    ),
    "a period reopened": (
        "UPDATE subscription_usage SET closed = false WHERE closed",
        {("periods", "closed")},
    ),
    "a period's limit changed": (
        "UPDATE subscription_usage SET agent_minutes_limit = agent_minutes_limit + 1",
        {("periods", "agent_minutes_limit")},
    ),
    "a period removed": (
        "DELETE FROM subscription_usage WHERE closed AND recorded_ms <> 0",
        {("sums", "recorded_ms")},
    ),
    "a task's billed time changed": (
        (
            "UPDATE tasks SET metered_ms = metered_ms - 1, recorded_ms = recorded_ms - 1"
            " WHERE task_id = ONE_TASK"
        ),
        {("tasks", "recorded_ms"), ("tasks", "rows + unbilled_ms")},
    ),
    "a task removed": (
        "DELETE FROM tasks WHERE task_id = ONE_TASK",
        {("tasks", "recorded_ms")},
    ),
    "a position turned back": (
        "UPDATE organization_positions SET seq = 1",
        {("positions", "seq")},
    ),
    "agents without a slot": (
        (
            "INSERT INTO tasks (organization_id, task_id, agent_id, state, started_at,"
            " last_heartbeat_at, metered_until, seq) SELECT 'org_1', 'x' || n, 'x' || n, 'running',"
            " now(), now(), now(), 1 FROM generate_series(1, 50) n"
        ),
        {("slots", "at once")},
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
async def test_tampering_is_found_and_named(lived: PostgresPools, name: str) -> None:
    """The audit is worth what it finds: each invariant is broken once, on purpose."""
    statement, expected = TAMPERED[name]
    if name == "agents without a slot":
        await tamper(
            lived,
            "UPDATE organization_terms SET limits = jsonb_set(limits, '{agents}', '2')",
        )
    await tamper(lived, statement)

    found = await audit(lived)

    told = {(difference.check, difference.what) for difference in found.differences}
    assert expected <= told, found.differences[:20]
    assert {difference.organization_id for difference in found.differences} == {"org_1"}


async def test_a_row_past_the_overage_cap_is_found(pools: PostgresPools) -> None:
    """The cap is the customer's word: what is billed past it in its own terms is a difference."""
    await store_life(pools, 2)  # a life with overage
    capped = """UPDATE organization_terms SET limits = limits || '{"overage_cap_usd": "0.01"}'"""
    await tamper(pools, capped)

    found = await audit(pools)

    told = {(difference.check, difference.what) for difference in found.differences}
    assert told == {("caps", "overage cap")}
    assert {difference.expected for difference in found.differences} == {"0.01"}


async def test_one_organization_is_audited_without_the_others(lived: PostgresPools) -> None:
    """An operator who looks into one tenant sees nothing of another."""
    await tamper(lived, "UPDATE subscription_usage SET total_cost_usd = 99")

    assert (await audit(lived, organization_id="org_1")).differences
    other = await audit(lived, organization_id="org_2")
    assert (other.differences, other.organizations) == ((), 0)


async def test_a_tasks_evidence_adds_up(lived: PostgresPools) -> None:
    """Position and rows of a task answer the question why it was billed so much."""

    async def work(connection: Connection) -> str:
        return str(await connection.fetchval("SELECT " + PLACES["ONE_TASK"]))

    task_id = await lived.read("find a task", work)

    (evidence,) = (await audit(lived, task_id=task_id)).evidence

    assert evidence.task["task_id"] == task_id
    assert sum(row["quantity_ms"] for row in evidence.rows) == evidence.task["metered_ms"]
    assert json.dumps([dict(evidence.task), [dict(row) for row in evidence.rows]])


def run_command(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `meterd audit` on this database."""
    return subprocess.run(
        [sys.executable, "-m", "meterd", "audit", "--database-url", url, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


async def test_the_command_answers_with_its_exit_code(
    lived: PostgresPools, database_url: str
) -> None:
    """0 all holds, 1 differences, 2 no answer: what a cron job looks at."""
    clean = run_command(database_url, "--json")
    unknown = run_command(database_url, "--organization", "org_none")
    no_task = run_command(database_url, "--task", "none")
    unreachable = run_command("postgresql://meterd:x@127.0.0.1:1/none")
    await tamper(lived, "UPDATE subscription_usage SET total_cost_usd = 99")
    tampered = run_command(database_url)

    assert clean.returncode == 0, clean.stderr
    assert json.loads(clean.stdout)["differences"] == []
    assert [run.returncode for run in (unknown, no_task, unreachable)] == [2, 2, 2]
    assert unreachable.stderr.startswith("meterd: store failed to audit the ledger: ")
    assert tampered.returncode == 1
    assert "total_cost_usd is 99.00, expected" in tampered.stdout
