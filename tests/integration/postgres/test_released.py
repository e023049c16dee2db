"""A database of every released version is brought to this one's schema, with its data.

`released/<version>.sql` is what pg_dump said of a small database of that version. The one of the
version being worked on is written anew by `WRITE_RELEASED=1` until it is released; others never.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import trio

from meterd import __version__
from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.migrate import Migrations
from meterd.adapters.postgres_cluster import PROGRAMS
from tests.integration.service.books import assert_books_are_right, query
from tests.integration.service.harness import running_meterd
from tests.integration.service.stream import open_stream


pytestmark = pytest.mark.slow

RELEASED = Path(__file__).with_name("released")
VERSIONS = sorted(path.stem for path in RELEASED.glob("*.sql"))

SHAPE = """
SELECT 'column' AS kind, table_name || '.' || column_name AS name,
    concat_ws(' ', data_type, is_nullable, column_default) AS what
FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
UNION ALL SELECT 'trigger', tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid)
FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'policy', tablename || '.' || policyname, qual FROM pg_policies
UNION ALL SELECT 'function', proname, pg_get_functiondef(oid)
FROM pg_proc WHERE pronamespace = 'public'::regnamespace
ORDER BY 1, 2
"""
"""Everything a migration makes. Not-null is in the columns: servers name its constraints apart."""


def restore(url: str, version: str) -> None:
    """Read a dump into an empty database."""
    script = RELEASED / f"{version}.sql"
    subprocess.run(
        [PROGRAMS / "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "-f", script, url],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=60,
    )


def write(url: str) -> None:
    """Dump a database as the one that the present version leaves behind."""
    dump = [str(PROGRAMS / "pg_dump"), "--no-owner", "--no-privileges", "--inserts", url]
    said = subprocess.run(dump, check=True, capture_output=True, timeout=60).stdout.decode()
    # Without what only the newest servers and clients know.
    known = re.sub(
        r"^(SET transaction_timeout.*|\\(un)?restrict.*)\n", "", said, flags=re.MULTILINE
    )
    (RELEASED / f"{__version__}.sql").write_text(known, encoding="utf-8")


async def test_what_this_version_leaves_behind(database_url: str) -> None:
    """The dump of the present version is there, and is made like this."""
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "starter")
        await service.organization("globex", "enterprise", contract={"agent_minutes": 5_000})
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("done", "a", user_id="jane", metadata={"note": "x"})
            await stream.finish("done", 1_500)
            await stream.start("running", "b")
            await stream.beat("running", 700)
        assert (await service.adjust("globex", 180_000)).status_code == 201
        assert await service.stop() == 0
    if os.environ.get("WRITE_RELEASED") == "1":
        await trio.to_thread.run_sync(write, database_url)

    assert (RELEASED / f"{__version__}.sql").is_file()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_database_of_a_released_version_becomes_this_ones(
    version: str, portal: AsyncioThread, empty_database_url: str, database_url: str
) -> None:
    """The same tables as a new one has, sound books, and a service that goes on with them."""
    restore(empty_database_url, version)
    before = await query(
        empty_database_url, "SELECT sum(quantity_ms)::bigint AS ms FROM usage_records"
    )
    migrations = Migrations(portal, empty_database_url)
    await migrations.upgrade()

    shape = await query(empty_database_url, SHAPE)
    assert shape == await query(database_url, SHAPE)
    where = ("--database-url", empty_database_url)
    await assert_books_are_right(*where)
    async with running_meterd(*where, "--accept-clock") as service:
        listed = (await service.http.get("/admin/v1/organizations")).json()["data"]
        key = await service.key("globex", "agent")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("after", "a")
            await stream.finish("after", 500)
        assert await service.stop() == 0
    after = await query(
        empty_database_url, "SELECT sum(quantity_ms)::bigint AS ms FROM usage_records"
    )

    assert [each["id"] for each in listed] == ["acme", "globex"]
    assert after[0]["ms"] >= before[0]["ms"] + 500
    await assert_books_are_right(*where)
