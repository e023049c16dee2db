"""Least privilege on a real installation: one role owns the tables, one runs meterd, one reads.

Everything meterd does works as the second; what it must not do, PostgreSQL refuses.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import attrs
import pytest
import trio

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.grants import REPORTING, SERVICE
from meterd.adapters.postgres.pool import Connection, open_postgres_pools
from meterd.adapters.postgres_cluster import PROGRAMS
from meterd.errors import StoreUnavailableError
from tests.conftest import as_role, execute, sibling
from tests.integration.cli.programs import meterd
from tests.integration.service.books import assert_books_are_right, query
from tests.integration.service.harness import Service, running_meterd
from tests.integration.service.stream import open_stream
from tests.integration.service.test_books import ended_run
from tests.integration.service.test_webhooks import crossing, customer


pytestmark = pytest.mark.slow

_numbers = itertools.count(1)

DENIED = "42501"


@attrs.frozen
class Installation:
    """One database as three roles see it; none of them is a superuser."""

    owner_url: str
    service_url: str
    reporting_url: str
    service_role: str
    reporting_role: str


@pytest.fixture
def installation(postgres_server_url: str) -> Iterator[Installation]:
    """Give a database with its roles, as `deploy/postgres/roles.sql` makes it: without tables."""
    ending = f"{os.getpid()}_{next(_numbers)}"
    names = {kind: f"meterd_{kind}_{ending}" for kind in ("owner", "service", "reporting")}
    name = f"meterd_roles_{ending}"
    chosen = [f"--set={kind}={role}" for kind, role in {**names, "database": name}.items()]
    script = ("--no-psqlrc", "--file", "deploy/postgres/roles.sql", postgres_server_url)
    subprocess.run([PROGRAMS / "psql", *chosen, *script], check=True, timeout=30)
    for role in names.values():
        execute(postgres_server_url, f"ALTER ROLE {role} PASSWORD '{role}'")
    url = sibling(postgres_server_url, name)
    yield Installation(
        owner_url=as_role(url, names["owner"]),
        service_url=as_role(url, names["service"]),
        reporting_url=as_role(url, names["reporting"]),
        service_role=names["service"],
        reporting_role=names["reporting"],
    )
    execute(postgres_server_url, f"DROP DATABASE {name} WITH (FORCE)")
    for role in names.values():
        execute(postgres_server_url, f"DROP ROLE {role}")


async def grant(place: Installation) -> None:
    """Migrate and grant as the how-to says."""
    ran = await meterd(
        "migrate",
        *("--grant-service", place.service_role, "--grant-reporting", place.reporting_role),
        settings={"METERD_DATABASE_URL": place.owner_url},
    )
    assert ran.code == 0, ran.err


async def refusal(url: str, statement: str) -> str | None:
    """Return the SQLSTATE with which a statement is refused, None when it is not."""

    def attempt() -> str | None:
        try:
            execute(url, statement)
        except asyncpg.PostgresError as error:
            return str(error.sqlstate)
        return None

    return await trio.to_thread.run_sync(attempt)


async def work(service: Service, hook: str) -> None:
    """Do a bit of everything that writes."""
    key = await service.organization("acme", "enterprise")
    await service.organization("other", "starter", contract={"agent_minutes": 100})
    await crossing(service, "other")
    async with open_stream(service.stream_url, key) as stream:
        await stream.start("t1", "a", user_id="jane", metadata={"note": "of Jane"})
        await stream.finish("t1", 90_000)
        await stream.start("running", "a")
    async with service.client(key) as client:
        made = await client.post("/v1/webhook-endpoints", json={"url": hook})
        assert made.status_code == 201, made.text
        path = f"/v1/webhook-endpoints/{made.json()['id']}"
        for answer in (
            await client.post(f"{path}/test"),
            await client.patch(path, json={"description": "mine"}),
            await client.get(path + "/deliveries"),
            await client.get("/v1/usage/records"),
            await client.get("/v1/tasks"),
            await client.get("/v1/keys"),
            await client.delete(path),
        ):
            assert answer.is_success, answer.text
    event = {
        "specversion": "1.0",
        "id": "e1",
        "source": "app",
        "type": "meterd.api_call",
        "subject": "acme",
    }
    async with service.client(key) as client:
        await client.post("/v1/events", json=event, headers={"idempotency-key": "k" * 20})
    patched = await service.http.patch("/admin/v1/organizations/acme", json={"name": "Acme 2"})
    erased = await service.http.delete("/admin/v1/users/acme/jane")
    assert (patched.status_code, erased.status_code) == (200, 200), erased.text
    assert erased.json()["records"] == 1


async def test_meterd_runs_whole_under_the_least_role(
    installation: Installation, tmp_path: Path, empty_database_url: str
) -> None:
    """Every job, every write, the audit, keys and backups: nothing needs the owner's rights."""
    await grant(installation)
    settings = {
        "METERD_DATABASE_URL": installation.service_url,
        "METERD_WEBHOOKS_PRIVATE_ALLOWED": "true",
        "METERD_REPORTS_DIR": str(tmp_path / "reports"),
    }
    where = {"METERD_DATABASE_URL": installation.service_url}
    async with customer() as server, running_meterd(settings=settings) as service:
        await work(service, server.url)
        for job in (await service.http.get("/admin/v1/jobs")).json()["data"]:
            run = await ended_run(service, job["name"])
            assert run["outcome"] == "succeeded", run
        reconciled = await service.http.post("/admin/v1/reconcile/ledger")
        assert reconciled.json()["differences"] == []
        key = ("--organization", "acme", "--scope", "agent")
        made = await meterd("keys", "create", *key, settings=where)
        doctor = await meterd("doctor", settings=where)
        backup = await meterd("backup", str(tmp_path / "backup"), settings=where)
        assert await service.stop() == 0
    async with running_meterd("--takeover", settings=settings) as service:
        assert (await service.http.get("/readyz")).status_code == 200
    rebuilt = await meterd("reconcile", "ledger", "--rebuild", settings=where)

    assert [line for line in service.log if "permission denied" in line] == []
    assert made.code == 0, made.err
    assert "may meter, and not change tables" in doctor.out, doctor.out
    assert backup.code == 0, backup.err
    restored = await meterd(
        "restore", str(tmp_path / "backup"), "--database-url", empty_database_url
    )
    assert restored.out == "restored; 0 differences in the books\n", restored.err
    for table in ("usage_records", "audit_log", "api_keys", "webhook_deliveries"):
        text = f"SELECT count(*) AS n FROM {table}"  # noqa: S608  # our own names
        copied = (await query(empty_database_url, text))[0]["n"]
        assert copied > 0 or table == "webhook_deliveries"
    assert rebuilt.code == 0, rebuilt.err
    await assert_books_are_right("--database-url", installation.service_url)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine ()",
        "ALTER TABLE tasks ADD COLUMN more text",
        "DROP TABLE findings",
        "ALTER TABLE usage_records DISABLE TRIGGER ALL",
        "ALTER TABLE usage_records NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY one_organization ON usage_records",
        "UPDATE usage_records SET quantity = 0",
        "DELETE FROM usage_records",
        "TRUNCATE usage_records",
        "TRUNCATE tasks",
        "UPDATE organization_terms SET plan_tier = 'enterprise'",
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "DELETE FROM overage_charges",
        "DELETE FROM organizations",
        "DELETE FROM usage_events",
        "UPDATE meterd_secrets SET value = ''",
        "INSERT INTO alembic_version VALUES ('9999')",
        "UPDATE migration_checksums SET sha256 = ''",
    ],
)
async def test_what_the_service_must_not_do_is_refused(
    service_database_url: str, statement: str
) -> None:
    """Whoever breaks into meterd still cannot rewrite what was billed, or who did what."""
    assert await refusal(service_database_url, statement) == DENIED


async def test_a_query_that_forgot_its_condition_shows_one_organization(
    installation: Installation, portal: AsyncioThread
) -> None:
    """The second wall: for a customer's request PostgreSQL hides everybody else."""
    await grant(installation)
    async with running_meterd("--database-url", installation.service_url) as service:
        for name in ("acme", "other"):
            await service.organization(name, "enterprise")
            assert (await service.adjust(name, 120_000)).status_code == 201

    async def forgetful(connection: Connection) -> set[str]:
        rows = await connection.fetch("SELECT organization_id AS id FROM usage_records")
        return {row["id"] for row in rows}

    async def intrude(connection: Connection) -> None:
        await connection.execute("UPDATE organizations SET name = 'mine' WHERE id = 'other'")
        await connection.execute(
            "INSERT INTO findings (id, at, kind, organization_id) VALUES ('f', now(), 'x', 'other')"
        )

    for url in (installation.service_url, installation.owner_url):
        async with open_postgres_pools(portal, url) as pools:
            assert await pools.read_of("acme", "look", forgetful) == {"acme"}
            assert await pools.read_of("nobody", "look", forgetful) == set()
            assert await pools.read("look", forgetful) == {"acme", "other"}
            with pytest.raises(StoreUnavailableError, match="row-level security"):
                await pools.write_of("acme", "intrude", intrude)
    names = await query(installation.service_url, "SELECT name FROM organizations ORDER BY id")
    assert [row["name"] for row in names] == ["Acme", "Other"]


async def test_a_reporting_role_reads_the_organization_it_names_and_no_secret(
    installation: Installation,
) -> None:
    """A forgotten `SET app.organization` shows nothing, not everything."""
    await grant(installation)
    async with running_meterd("--database-url", installation.service_url) as service:
        for name in ("acme", "other"):
            await service.organization(name, "enterprise")
            assert (await service.adjust(name, 120_000)).status_code == 201
    url = installation.reporting_url
    one = url + "?app.organization=acme&default_transaction_read_only=off"
    counts = {}
    for table in REPORTING:
        text = f"SELECT count(*) AS n FROM {table}"  # noqa: S608  # our own names
        (silent,), (named,) = await query(url, text), await query(one, text)
        counts[table] = (silent["n"], named["n"])
    hidden = [table for table in SERVICE if table not in REPORTING]
    refused = [await refusal(one, f"SELECT FROM {table}") for table in hidden]
    written = await refusal(one, "UPDATE organizations SET name = 'mine'")
    erased = await refusal(one, "SELECT erase_user('acme', 'a', 'erased_1')")

    assert {silent for silent, _ in counts.values()} == {0}
    assert counts["usage_records"] == (0, 1)
    assert counts["organizations"] == (0, 1)
    assert set(refused) == {written} == {erased} == {DENIED}


async def test_every_table_has_its_grant_and_its_wall(database_url: str) -> None:
    """A table that a migration adds and nobody thinks about belongs to nobody."""
    tables = await query(
        database_url,
        """
        SELECT relname, relrowsecurity AND relforcerowsecurity AS is_walled, EXISTS (
            SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'organization_id'
        ) AS is_of_one
        FROM pg_class c WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
        """,
    )

    assert {row["relname"] for row in tables} == set(SERVICE)
    assert [row["relname"] for row in tables if row["is_of_one"] and not row["is_walled"]] == []
    walled = {row["relname"] for row in tables if row["is_walled"]}
    assert set(REPORTING) <= walled


async def test_a_role_without_the_right_to_migrate_says_what_to_run(
    installation: Installation,
) -> None:
    """An upgrade starts meterd on an old schema: not a word about permissions deep inside."""
    started = await meterd("serve", "--database-url", installation.service_url)
    for url, role in (
        (installation.owner_url, "nobody_at_all"),
        (installation.owner_url, installation.owner_url.split("//")[1].split(":")[0]),
    ):
        ran = await meterd("migrate", "--database-url", url, "--grant-service", role)
        assert ran.code == 2, ran.err
        assert role in ran.err

    assert started.code == 2
    assert "meterd migrate --grant-service" in started.err


async def test_a_right_that_is_missing_sets_no_fact_aside(installation: Installation) -> None:
    """Somebody revokes too much: agents wait as in an outage, and nothing is lost."""
    await grant(installation)
    async with running_meterd("--database-url", installation.service_url) as service:
        await service.organization("acme", "enterprise")
        statement = f"REVOKE INSERT ON usage_records FROM {installation.service_role}"
        assert await refusal(installation.owner_url, statement) is None
        waiting = await service.adjust("acme", 120_000)
        doctor = await meterd("doctor", "--database-url", installation.service_url)
        await grant(installation)
        with trio.fail_after(20):
            while (await service.adjust("acme", 60_000)).status_code != 201:  # noqa: ASYNC110  # HTTP
                await trio.sleep(0.1)
        letters = (await service.http.get("/admin/v1/dead-letters")).json()["data"]
        quota = (await service.http.get("/admin/v1/organizations/acme")).json()["quota"]

    assert waiting.status_code == 503
    assert doctor.code == 1
    assert "INSERT on usage_records" in doctor.out
    assert letters == []
    assert quota["agent_minutes"]["used_ms"] >= 180_000
