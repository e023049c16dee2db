# ruff: noqa: ASYNC110  another process's state has no event: it is asked, with a deadline
from __future__ import annotations

import shutil
from pathlib import Path

import asyncpg
import pytest
import trio

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.migrate import LOCK_KEY, SCRIPTS, Migrations
from meterd.adapters.postgres.owner import LOCK_KEY as OWNER_LOCK_KEY, own_database
from meterd.adapters.postgres.pool import (
    Connection,
    PostgresPools,
    open_dedicated_connection,
)
from meterd.errors import StoreRejectedError, StoreUnavailableError
from tests.integration.cli.programs import meterd


ROW = "INSERT INTO probe VALUES (1); "
SLOW = "SELECT pg_sleep(60); "


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """Give a script directory with two small revisions; the second takes a minute."""
    versions = tmp_path / "versions"
    versions.mkdir()
    write_revision(versions, "0001", None, "CREATE TABLE probe (n integer); " + ROW)
    write_revision(versions, "0002", "0001", ROW + SLOW + ROW)
    return tmp_path


def write_revision(versions: Path, revision: str, down: str | None, sql: str) -> None:
    """Write a revision and its SQL as they lie in the package."""
    (versions / f"{revision}.sql").write_text(sql)
    (versions / f"{revision}.py").write_text(
        f'"""Revision {revision}."""\n'
        "from meterd.adapters.postgres.migrations.sql import run_sql_beside\n"
        f"revision = {revision!r}\ndown_revision = {down!r}\n"
        "def upgrade():\n    run_sql_beside(__file__)\n"
    )


async def fetch(url: str, query: str, *arguments: object) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return [tuple(row.values()) for row in await connection.fetch(query, *arguments)]
    finally:
        await connection.close(timeout=10)


async def wait_for_row(portal: AsyncioThread, url: str, query: str) -> list[tuple[object, ...]]:
    """Return the rows of the query as soon as there are any."""
    with trio.fail_after(30):
        while not (rows := await portal.run(fetch, url, query)):
            await trio.sleep(0.02)
    return rows


async def test_an_empty_database_is_brought_to_the_newest_revision(
    portal: AsyncioThread, empty_database_url: str
) -> None:
    """What `meterd serve` does at its first start; the second time there is nothing to do."""
    migrations = Migrations(portal, empty_database_url)
    said: list[str] = []
    before = await migrations.current()
    pending = [revision.id for revision in await migrations.pending()]

    done = await migrations.upgrade(said.append)
    again = await migrations.upgrade(said.append)

    assert before is None
    assert done == tuple(pending)
    assert again == ()
    assert await migrations.current() == pending[-1]
    assert await migrations.pending() == ()
    assert said == [f"making the tables (migrations {done[0]} to {done[-1]})"]


async def test_the_tables_of_the_contract_are_there(pools: PostgresPools) -> None:
    """Applications read these two tables; their columns and types are promised."""

    async def columns(connection: asyncpg.Connection, table: str) -> set[str]:
        rows = await connection.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_name = $1", table
        )
        return {row["column_name"] for row in rows}

    records = await pools.read("look", lambda connection: columns(connection, "usage_records"))
    usage = await pools.read("look", lambda connection: columns(connection, "subscription_usage"))

    assert records >= {
        *("id", "organization_id", "user_id", "resource_type", "quantity", "unit_cost"),
        *("total_cost", "metadata", "timestamp", "billing_period"),
    }
    assert usage >= {
        *("id", "organization_id", "billing_period", "plan_tier", "agent_minutes_used"),
        *("agent_minutes_limit", "api_calls_used", "total_cost_usd", "overage_charges_usd"),
        "last_updated",
    }


async def test_a_ledger_row_cannot_be_changed_or_deleted(pools: PostgresPools) -> None:
    """The database itself refuses, whoever is connected."""

    async def update(connection: asyncpg.Connection) -> None:
        await connection.execute("UPDATE usage_records SET quantity = 0")

    async def truncate(connection: asyncpg.Connection) -> None:
        await connection.execute("TRUNCATE usage_records CASCADE")

    for tamper in (update, truncate):
        with pytest.raises(StoreRejectedError, match="append-only"):
            await pools.write("tamper", tamper)


async def test_processes_that_start_together_migrate_once(
    portal: AsyncioThread, empty_database_url: str
) -> None:
    """Two meterd on one database: nobody fails and nothing is run twice."""
    done: list[str] = []

    async def migrate() -> None:
        done.extend(await Migrations(portal, empty_database_url).upgrade())

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(migrate)

    assert sorted(done) == sorted(set(done)), "they may share the work, in any order of ending"
    assert done


async def test_a_migration_killed_in_the_middle_has_not_happened_and_can_be_run_again(
    portal: AsyncioThread, empty_database_url: str, scripts: Path
) -> None:
    """Kill -9, a reboot, an operator's pg_terminate_backend: the same for the database."""
    migrations = Migrations(portal, empty_database_url, scripts)
    failures: list[StoreUnavailableError] = []

    async def migrate_and_fail() -> None:
        try:
            await migrations.upgrade()
        except StoreUnavailableError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(migrate_and_fail)
        await wait_for_row(
            portal,
            empty_database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event = 'PgSleep' AND application_name = 'meterd migrate'"
            " AND datname = current_database()",
        )

    assert [failure.action for failure in failures] == ["migrate the database to 0002"]
    assert await migrations.current() == "0001"
    assert await portal.run(fetch, empty_database_url, "SELECT n FROM probe") == [(1,)]

    (scripts / "versions" / "0002.sql").write_text(ROW + ROW)
    said: list[str] = []
    assert await migrations.upgrade(said.append) == ("0002",)
    assert said == ["migrating the database to 0002: Revision 0002"]
    assert await portal.run(fetch, empty_database_url, "SELECT n FROM probe") == [(1,)] * 3


async def test_every_migration_of_meterd_killed_at_its_end_has_not_happened(
    portal: AsyncioThread, empty_database_url: str, tmp_path: Path
) -> None:
    """The backend ends when every statement of the step is done and nothing is committed."""
    migrations = Migrations(portal, empty_database_url)
    steps = [step.id for step in await migrations.pending()]
    left = []
    for step in steps:
        shutil.copytree(SCRIPTS, tmp_path, dirs_exist_ok=True)
        (script,) = (tmp_path / "versions").glob(f"{step}_*.sql")
        script.write_text(f"{script.read_text()}; SELECT pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(StoreUnavailableError):  # after the step before, which is done now
            await Migrations(portal, empty_database_url, tmp_path).upgrade()
        left.append(await migrations.current())

    assert left == [None, *steps[:-1]]
    assert await migrations.upgrade() == (steps[-1],)


async def test_a_cancelled_migration_lets_go_of_its_lock(
    portal: AsyncioThread, empty_database_url: str, scripts: Path
) -> None:
    """Whoever stops a slow start must be able to start again."""
    migrations = Migrations(portal, empty_database_url, scripts)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(migrations.upgrade)
        await wait_for_row(
            portal,
            empty_database_url,
            "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            " AND datname = current_database()",
        )
        nursery.cancel_scope.cancel()

    with trio.fail_after(30):
        while await portal.run(
            fetch,
            empty_database_url,
            "SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
            " WHERE locktype = 'advisory' AND d.datname = current_database()"
            " AND (l.classid::bigint << 32 | l.objid::bigint) = $1",
            LOCK_KEY,
        ):
            await trio.sleep(0.02)
    assert await migrations.current() == "0001"


async def test_a_revision_that_postgres_refuses_leaves_the_revisions_before_it(
    portal: AsyncioThread, empty_database_url: str, scripts: Path
) -> None:
    """Each revision is a transaction of its own."""
    (scripts / "versions" / "0002.sql").write_text(ROW + "SELECT no_such_column")
    migrations = Migrations(portal, empty_database_url, scripts)

    with pytest.raises(StoreRejectedError, match="no_such_column"):
        await migrations.upgrade()

    assert await migrations.current() == "0001"
    assert await portal.run(fetch, empty_database_url, "SELECT n FROM probe") == [(1,)]


async def test_a_database_of_a_newer_meterd_is_refused_in_a_clear_sentence(
    portal: AsyncioThread, empty_database_url: str, scripts: Path
) -> None:
    """An old binary on a new schema would write wrong rows."""
    (scripts / "versions" / "0002.sql").write_text(ROW)
    await Migrations(portal, empty_database_url, scripts).upgrade()
    (scripts / "versions" / "0002.py").unlink()

    with pytest.raises(StoreRejectedError, match="written by a newer meterd") as caught:
        await Migrations(portal, empty_database_url, scripts).upgrade()

    assert "0002" in str(caught.value)
    assert "up to 0001" in str(caught.value)


async def test_an_edited_migration_is_noticed(
    portal: AsyncioThread, empty_database_url: str, tmp_path: Path
) -> None:
    """Two databases of one revision are the same, or nobody knows what an upgrade does."""
    copy = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    migrations = Migrations(portal, empty_database_url, copy)
    await migrations.upgrade()
    assert await migrations.pending() == ()
    edited = copy / "versions" / "0003_books.sql"
    edited.write_text(edited.read_text("utf-8") + "-- one word more\n", "utf-8")

    with pytest.raises(StoreRejectedError, match="migration 0003 was run with another text"):
        await migrations.pending()


async def test_a_new_version_migrates_only_when_the_old_one_has_gone(
    portal: AsyncioThread, empty_database_url: str
) -> None:
    """The old one never meets tables that it does not know; the wait is the hand-over's own."""
    real = Migrations(portal, empty_database_url)
    order: list[str] = []

    async def migrate() -> None:
        order.append("migrated")
        await real.upgrade()

    async def second() -> None:
        where = (portal, empty_database_url)
        async with own_database(*where, owner="new", wait_ms=10_000, prepare=migrate) as owner:
            order.append(f"owner {owner.epoch}")

    async with (
        trio.open_nursery() as nursery,
        own_database(
            portal, empty_database_url, owner="old", wait_ms=0, prepare=real.upgrade
        ) as first,
    ):
        nursery.start_soon(second)
        await wait_for_row(
            portal,
            empty_database_url,
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'meterd owner'"
            " AND datname = current_database() OFFSET 1",
        )
        order.append(f"owner {first.epoch} leaves")

    assert order == ["owner 1 leaves", "migrated", "owner 2"]


async def test_migrating_by_hand_waits_for_the_meterd_that_runs(
    portal: AsyncioThread, empty_database_url: str
) -> None:
    """Tables do not change under a process that knows them as they were: exit code 3, and why."""

    async def lock(connection: Connection) -> bool:
        return bool(await connection.fetchval("SELECT pg_try_advisory_lock($1)", OWNER_LOCK_KEY))

    where = ("--database-url", empty_database_url)
    async with open_dedicated_connection(portal, empty_database_url, name="owner") as owner:
        assert await owner.run("lock", lock)
        waited = await meterd("migrate", *where, "--owner-wait-ms", "200")
        assert await Migrations(portal, empty_database_url).current() is None
    done = await meterd("migrate", *where)
    again = await meterd("migrate", *where, "--check")

    assert (waited.code, "another meterd" in waited.err) == (3, True)
    assert (done.code, again.code) == (0, 0)


async def test_a_server_that_is_away_is_an_outage(portal: AsyncioThread) -> None:
    """Migrating waits for the same retry as everything else."""
    with pytest.raises(StoreUnavailableError):
        await Migrations(portal, "postgresql://meterd@127.0.0.1:1/meterd").current()
