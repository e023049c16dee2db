"""Fixtures that need more than Python: one PostgreSQL for the session, one database a test.

METERD_TEST_DATABASE_URL names a server to use, by a URL whose user may create databases; without
it the embedded one is started. A missing server skips, or fails under METERD_REQUIRE_SERVICES=1.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import hypothesis
import pytest
import trio

from meterd.adapters import embedded_postgres, postgres_cluster
from meterd.adapters.asyncio_thread import AsyncioThread, open_asyncio_thread
from meterd.adapters.embedded_postgres import EmbeddedPostgres
from meterd.adapters.postgres.grants import Grants
from meterd.adapters.postgres.migrate import Migrations
from meterd.adapters.postgres.pool import PostgresPools, open_postgres_pools
from meterd.errors import EmbeddedPostgresError


# A test is no slower on a busy machine than it is right: only pytest's own limit ends it.
hypothesis.settings.register_profile("unhurried", deadline=None)
# Mutants meet the same few examples each time, and nobody reads the smallest that finds one out.
hypothesis.settings.register_profile(
    "mutants",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=15,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("unhurried")


_numbers = itertools.count(1)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Give a directory that PostgreSQL's account can reach; pytest's tmp_path shuts it out."""
    path = Path(tempfile.mkdtemp(prefix="meterd-test-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    """Give the URL of a real PostgreSQL, started once for the session and stopped after it."""
    if url := os.environ.get("METERD_TEST_DATABASE_URL"):
        yield url
        return
    directory = Path(tempfile.mkdtemp(prefix="meterd-test-session-"))
    try:
        server = start_session_server(directory)
    except EmbeddedPostgresError as error:
        shutil.rmtree(directory, ignore_errors=True)
        missing_service(f"no PostgreSQL for this test: {error}")
    yield server.dsn
    stop_session_server(server)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(postgres_server_url: str) -> Iterator[str]:
    """Give the name of a migrated database that nobody is connected to."""
    name = f"meterd_template_{os.getpid()}"
    execute(postgres_server_url, f"CREATE DATABASE {name}")

    async def migrate() -> None:
        async with open_asyncio_thread() as portal:
            await Migrations(portal, sibling(postgres_server_url, name)).upgrade()

    trio.run(migrate)
    yield name
    execute(postgres_server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(postgres_server_url: str, template_database: str) -> Iterator[str]:
    """Give the URL of a migrated database of this test's own."""
    name = f"meterd_test_{os.getpid()}_{next(_numbers)}"
    execute(postgres_server_url, f"CREATE DATABASE {name} TEMPLATE {template_database}")
    yield sibling(postgres_server_url, name)
    execute(postgres_server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def service_role(postgres_server_url: str, template_database: str) -> Iterator[str]:
    """Give a role, its own password, that has in every test's database what meterd needs."""
    role = f"meterd_service_{os.getpid()}"
    execute(postgres_server_url, f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")

    async def grant() -> None:
        async with open_asyncio_thread() as portal:
            await Grants(portal, sibling(postgres_server_url, template_database)).to_service(role)

    trio.run(grant)
    yield role
    execute(sibling(postgres_server_url, template_database), f"DROP OWNED BY {role}")
    execute(postgres_server_url, f"DROP ROLE {role}")


@pytest.fixture
def service_database_url(service_role: str, database_url: str) -> str:
    """Give the URL of this test's database for the role with the least rights."""
    return as_role(database_url, service_role)


@pytest.fixture
def empty_database_url(postgres_server_url: str) -> Iterator[str]:
    """Give the URL of a database of this test's own without any table."""
    name = f"meterd_test_{os.getpid()}_{next(_numbers)}"
    execute(postgres_server_url, f"CREATE DATABASE {name}")
    yield sibling(postgres_server_url, name)
    execute(postgres_server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def portal() -> AsyncIterator[AsyncioThread]:
    """Give the asyncio thread of this test's Trio run. It needs a real clock."""
    async with open_asyncio_thread() as portal:
        yield portal


@pytest.fixture
async def pools(portal: AsyncioThread, database_url: str) -> AsyncIterator[PostgresPools]:
    """Give pools on a migrated database of this test's own."""
    async with open_postgres_pools(portal, database_url) as pools:
        yield pools


def missing_service(reason: str) -> NoReturn:
    """Skip on a laptop, fail where services are required."""
    if os.environ.get("METERD_REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def sibling(url: str, database: str) -> str:
    """Return the URL of another database on the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


def as_role(url: str, role: str) -> str:
    """Return the same database for another role, whose password is its name."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}:{role}@{host}"))


def execute(url: str, *statements: str) -> None:
    """Run statements one by one, from code that is in no event loop."""

    async def run() -> None:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close(timeout=10)

    asyncio.run(run())


def start_session_server(directory: Path) -> EmbeddedPostgres:
    """Start a server that outlives the Trio run that starts it: each test has its own run.

    Its death signal still ends it with the test process.
    """
    lock = postgres_cluster.take_lock(directory)
    assert lock is not None

    async def start() -> EmbeddedPostgres:
        async with open_asyncio_thread() as portal:
            return await embedded_postgres._start_first(portal, directory, lambda _: None, lock)

    return trio.run(start)


def stop_session_server(server: EmbeddedPostgres) -> None:
    """Stop it as a crash would, in no time: its data is thrown away."""
    process = server._process
    assert process is not None
    process.send_signal(signal.SIGQUIT)
    process.wait(timeout=30)
    assert server.lock is not None
    os.close(server.lock)
