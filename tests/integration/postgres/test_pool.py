# ruff: noqa: ASYNC110  another process's state has no event: it is asked, with a deadline
from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.embedded_postgres import EmbeddedPostgres, open_embedded_postgres
from meterd.adapters.postgres import pool
from meterd.adapters.postgres.durability import assert_durable_settings, unsafe_settings
from meterd.adapters.postgres.pool import (
    Connection,
    Lane,
    PostgresPools,
    open_dedicated_connection,
    open_postgres_pools,
)
from meterd.errors import ConfigError, StoreRejectedError, StoreUnavailableError


async def one(connection: Connection) -> int:
    value: int = await connection.fetchval("SELECT 1")
    return value


async def sleep(connection: Connection) -> None:
    await connection.execute("SELECT pg_sleep(60)")


async def sleeping(pools: PostgresPools) -> int:
    """Return how many statements sleep in this database now."""

    async def count(connection: Connection) -> int:
        number: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event = 'PgSleep' AND datname = current_database()"
        )
        return number

    return await pools.write("count sleepers", count)


async def until_sleeping(pools: PostgresPools, number: int) -> None:
    with trio.fail_after(20):
        while await sleeping(pools) != number:
            await trio.sleep(0.02)


async def test_reads_that_take_every_connection_do_not_stop_a_write(
    pools: PostgresPools,
) -> None:
    """The flush has connections of its own, whatever a dashboard does."""
    async with trio.open_nursery() as nursery:
        for _ in range(2 * pool.READ_CONNECTIONS):
            nursery.start_soon(pools.read, "sleep", sleep)
        await until_sleeping(pools, pool.READ_CONNECTIONS)
        answer = await pools.write("ask", one)
        nursery.cancel_scope.cancel()

    assert answer == 1
    assert pools.use(Lane.READ).limit == pool.READ_CONNECTIONS


async def test_waiting_for_a_connection_has_a_deadline(
    pools: PostgresPools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody queues behind slow work for ever."""
    monkeypatch.setattr(pool, "ACQUIRE_S", 0.2)
    async with trio.open_nursery() as nursery:
        for _ in range(pool.READ_CONNECTIONS):
            nursery.start_soon(pools.read, "sleep", sleep)
        await until_sleeping(pools, pool.READ_CONNECTIONS)
        with pytest.raises(StoreUnavailableError, match="failed to ask: no answer in time"):
            await pools.read("ask", one)
        nursery.cancel_scope.cancel()


async def test_a_cancelled_statement_ends_in_the_server_too(pools: PostgresPools) -> None:
    """A client that went away must not leave its query running; the connection is good again."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pools.read, "sleep", sleep)
        await until_sleeping(pools, 1)
        nursery.cancel_scope.cancel()

    await until_sleeping(pools, 0)
    assert await pools.read("ask", one) == 1


async def test_work_beyond_its_deadline_is_an_outage_of_unknown_outcome(
    pools: PostgresPools,
) -> None:
    """The caller may retry: ids make that harmless."""
    with pytest.raises(StoreUnavailableError, match="outcome unknown") as caught:
        await pools.read("sleep", sleep, timeout_s=0.1)

    assert caught.value.transient
    assert await pools.read("ask", one) == 1


async def test_a_transaction_that_raised_is_undone_before_the_connection_is_used_again(
    pools: PostgresPools,
) -> None:
    """A connection goes back without a reset query, but never inside a transaction."""

    async def begin_and_leave(connection: Connection) -> None:
        await connection.execute("BEGIN; CREATE TABLE left_open (n integer)")

    async def find(connection: Connection) -> object:
        return await connection.fetchval("SELECT to_regclass('left_open')")

    await pools.write("begin", begin_and_leave)

    assert await pools.write("look", find) is None


@pytest.mark.parametrize(
    ("statement", "state"),
    [
        ("SELECT 1/0", "22012"),
        ("SELECT no_such_column", "42703"),
        ("INSERT INTO organizations (id) VALUES ('a b')", "23502"),
        ("SELECT E'\\x00'", "22021"),
        ("SELECT repeat('x', 2000000000)", "54000"),
    ],
)
async def test_what_postgres_refuses_is_rejected_and_names_its_code(
    pools: PostgresPools, statement: str, state: str
) -> None:
    """Trying again cannot help: the batch has to be looked at."""

    async def work(connection: Connection) -> None:
        await connection.execute(statement)

    with pytest.raises(StoreRejectedError, match=state) as caught:
        await pools.write("insert", work)

    assert not caught.value.transient
    assert "Failing row" not in str(caught.value)


async def test_a_value_of_the_wrong_type_is_rejected(pools: PostgresPools) -> None:
    """Refused by the driver before it reaches the server; it is data all the same."""

    async def work(connection: Connection) -> None:
        await connection.fetchval("SELECT $1::bigint", 2**63)

    with pytest.raises(StoreRejectedError):
        await pools.write("insert", work)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("57P01", "terminating connection"),
        ("53100", "could not extend file: no space left on device"),
        ("40P01", "deadlock detected"),
        ("40001", "could not serialize access"),
        ("25006", "cannot execute INSERT in a read-only transaction"),
        ("55P03", "could not obtain lock"),
        ("58030", "could not read block"),
    ],
)
async def test_trouble_of_the_server_is_an_outage(
    pools: PostgresPools, state: str, message: str
) -> None:
    """A full disk or a deadlock says nothing about the rows: the same batch is tried again."""

    async def work(connection: Connection) -> None:
        await connection.execute(
            f"DO $$ BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = '{state}'; END $$"
        )

    with pytest.raises(StoreUnavailableError, match=f"{state} {message}"):
        await pools.write("insert", work)


async def test_a_killed_backend_is_an_outage_and_the_pool_heals_by_itself(
    pools: PostgresPools,
) -> None:
    """The reply was lost; the next call has a new connection."""

    async def kill_myself(connection: Connection) -> None:
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(StoreUnavailableError):
        await pools.write("die", kill_myself)

    assert await pools.write("ask", one) == 1


async def test_pools_can_be_opened_while_the_server_is_away(portal: AsyncioThread) -> None:
    """Starting order is no condition: enforcement begins when the store answers."""
    async with open_postgres_pools(portal, "postgresql://meterd@127.0.0.1:1/meterd") as pools:
        with pytest.raises(StoreUnavailableError):
            await pools.read("ask", one)


async def test_a_url_without_sense_is_rejected(portal: AsyncioThread) -> None:
    """A typing error is no outage to wait for; it shows when the pool first connects."""
    async with open_postgres_pools(portal, "mysql://localhost/meterd") as pools:
        with pytest.raises(StoreRejectedError, match="invalid DSN"):
            await pools.read("ask", one)


async def test_who_cannot_connect_is_told_where_and_never_shown_the_password(
    portal: AsyncioThread,
) -> None:
    """The commonest slip is a wrong URL; the sentence goes to logs and terminals."""
    dsn = "postgresql://meterd:s3cret@127.0.0.1:1/meterd?connect_timeout=3"
    with pytest.raises(StoreUnavailableError) as caught:
        async with open_dedicated_connection(portal, dsn, name="start"):
            pass

    assert str(caught.value).startswith("store failed to connect to PostgreSQL at 127.0.0.1:1: ")
    assert "s3cret" not in str(caught.value)


async def test_a_dedicated_connection_keeps_its_session_until_it_is_closed(
    portal: AsyncioThread, pools: PostgresPools
) -> None:
    """What the owner's lock rests on: the lock lives exactly as long as the connection."""

    async def take(connection: Connection) -> bool:
        taken: bool = await connection.fetchval("SELECT pg_try_advisory_lock(7)")
        return taken

    async with open_dedicated_connection(portal, pools.dsn, name="owner") as first:
        assert await first.run("lock", take)
        async with open_dedicated_connection(portal, pools.dsn, name="rival") as second:
            assert not await second.run("lock", take)

    async with open_dedicated_connection(portal, pools.dsn, name="next") as third:
        with trio.fail_after(10):
            while not await third.run("lock", take):
                await trio.sleep(0.02)


async def test_unsafe_settings_are_refused_by_name_unless_allowed(
    portal: AsyncioThread, pools: PostgresPools
) -> None:
    """`synchronous_commit=off` would acknowledge what a crash then loses."""

    async def check(connection: Connection, *, is_unsafe_allowed: bool = False) -> None:
        await connection.execute("SET synchronous_commit = off")
        await assert_durable_settings(connection, is_unsafe_allowed=is_unsafe_allowed)

    async def check_allowed(connection: Connection) -> None:
        await check(connection, is_unsafe_allowed=True)

    async with open_dedicated_connection(portal, pools.dsn, name="check") as connection:
        assert await connection.run("check", unsafe_settings) == ()
        with pytest.raises(ConfigError, match="synchronous_commit=off"):
            await connection.run("check", check)
        await connection.run("check", check_allowed)


@pytest.fixture
async def own_server(portal: AsyncioThread, data_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    """Give a server that a test may freeze without harming others."""
    async with open_embedded_postgres(portal, data_dir, on_progress=lambda _: None) as server:
        yield server


def signal_server(server: EmbeddedPostgres, number: signal.Signals) -> None:
    """Send a signal to the server and all its children."""
    assert server.pid is not None
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text("ascii").split()
    for pid in (server.pid, *map(int, children)):
        os.kill(pid, number)


@pytest.mark.slow
async def test_a_frozen_server_costs_its_deadlines_and_heals_when_it_thaws(
    portal: AsyncioThread, own_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process accepts connections and answers nothing: the worst kind of away."""
    for name in ("CONNECT_S", "ACQUIRE_S", "RELEASE_S"):
        monkeypatch.setattr(pool, name, 0.3)
    async with open_postgres_pools(portal, own_server.dsn, read_connections=2) as pools:
        await pools.read("ask", one)
        signal_server(own_server, signal.SIGSTOP)
        try:
            began_s = trio.current_time()
            for _ in range(3):
                with pytest.raises(StoreUnavailableError):
                    await pools.read("ask", one, timeout_s=0.3)
            took_s = trio.current_time() - began_s
        finally:
            signal_server(own_server, signal.SIGCONT)

        with trio.fail_after(20):
            while True:
                try:
                    answer = await pools.read("ask", one)
                    break
                except StoreUnavailableError:
                    await trio.sleep(0.05)

    assert took_s < 5
    assert answer == 1


@pytest.mark.slow
async def test_a_killed_server_is_an_outage_until_it_is_back_and_the_pool_heals(
    portal: AsyncioThread, own_server: EmbeddedPostgres
) -> None:
    """The URL stays the same, so nobody has to be told."""
    failures: set[type[Exception]] = set()
    async with open_postgres_pools(portal, own_server.dsn) as pools, trio.open_nursery() as nursery:
        nursery.start_soon(own_server.keep_running)
        first_pid = own_server.pid
        await pools.write("ask", one)
        assert first_pid is not None
        os.kill(first_pid, signal.SIGKILL)
        with trio.fail_after(30):
            while own_server.pid == first_pid or failures == set():
                try:
                    await pools.write("ask", one)
                except StoreUnavailableError as error:
                    failures.add(type(error))
                await trio.sleep(0.01)
            while True:
                try:
                    answer = await pools.write("ask", one)
                    break
                except StoreUnavailableError:
                    await trio.sleep(0.02)
        nursery.cancel_scope.cancel()

    assert failures == {StoreUnavailableError}
    assert answer == 1
