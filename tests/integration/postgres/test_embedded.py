# ruff: noqa: ASYNC110  another process's state has no event: it is asked, with a deadline
# ruff: noqa: ASYNC240  nothing else runs while a test looks at a file
from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import trio

from meterd.adapters import postgres_cluster, server_account
from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.embedded_postgres import (
    EmbeddedPostgres,
    attach_embedded_postgres,
    open_embedded_postgres,
)
from meterd.adapters.postgres_cluster import Cluster
from meterd.adapters.postgres_probe import Presence, probe
from meterd.errors import EmbeddedPostgresError


REPOSITORY = Path(__file__).parents[3]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change its account")


@pytest.fixture
def said() -> list[str]:
    """Collect the sentences for the operator."""
    return []


@pytest.fixture(autouse=True)
def no_server_left(data_dir: Path) -> Iterator[None]:
    """Fail a test that leaves a server of its directory behind, and end it."""
    yield
    left = servers_of(data_dir)
    for process in left:
        process.kill()
    assert left == []


def servers_of(directory: Path) -> list[psutil.Process]:
    """Return the postmasters whose command line names this directory."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(directory / "postgres") in (process.info["cmdline"] or ())
        and process.status() != psutil.STATUS_ZOMBIE
    ]


async def ask(dsn: str, query: str, *arguments: object) -> object:
    """Return one value. Runs on the asyncio loop."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return await connection.fetchval(query, *arguments)
    finally:
        await connection.close(timeout=10)


async def until_answering(portal: AsyncioThread, dsn: str, query: str) -> object:
    with trio.fail_after(30):
        while True:
            try:
                return await portal.run(ask, dsn, query)
            except (OSError, asyncpg.PostgresError):
                await trio.sleep(0.02)


async def test_the_first_start_creates_a_durable_server_that_keeps_to_itself(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """Nothing installed, one directory: and it promises what meterd promises."""
    data_dir.chmod(0o755)
    directory = data_dir / "made" / "here"
    async with open_embedded_postgres(portal, directory, on_progress=said.append) as server:
        version = await portal.run(ask, server.dsn, "SHOW server_version")
        settings = [
            await portal.run(ask, server.dsn, f"SHOW {name}")
            for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums")
        ]
        addresses = await portal.run(ask, server.dsn, "SHOW listen_addresses")
        encoding = await portal.run(ask, server.dsn, "SHOW server_encoding")
        password_mode = stat.S_IMODE((directory / "postgres.password").stat().st_mode)
        with pytest.raises(asyncpg.InvalidPasswordError):
            await portal.run(ask, server.dsn.replace(server.password, "wrong"), "SELECT 1")

    assert str(version).startswith("18.")
    assert settings == ["on"] * 4
    assert (addresses, encoding) == ("127.0.0.1", "UTF8")
    assert password_mode == 0o600
    assert server.password not in repr(server)
    assert any("creating a PostgreSQL database" in text for text in said)
    shutil.rmtree(directory)


async def test_a_second_start_has_the_same_data_and_address(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """Restarting meterd changes nothing."""
    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        first_dsn = server.dsn
        await portal.run(ask, server.dsn, "CREATE TABLE kept AS SELECT 42 AS n")

    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        assert server.dsn == first_dsn
        assert await portal.run(ask, server.dsn, "SELECT n FROM kept") == 42


async def test_a_second_opener_uses_the_running_server_and_leaves_it_running(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """`meterd audit --data-dir` works while meterd runs."""
    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        async with attach_embedded_postgres(portal, data_dir) as attached:
            assert attached.dsn == server.dsn
            assert (server.is_ours, attached.is_ours) == (True, False)
            assert await portal.run(ask, attached.dsn, "SELECT 1") == 1

        assert await portal.run(ask, server.dsn, "SELECT 1") == 1
        assert len(servers_of(data_dir)) == 1


async def test_openers_that_start_together_start_one_server(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """The lock decides, also on an empty directory; the others wait for the creation."""
    dsns: list[str] = []
    everyone = trio.Event()

    async def open_one() -> None:
        async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
            dsns.append(server.dsn)
            if len(dsns) == 4:
                everyone.set()
            await everyone.wait()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(open_one)

    assert len(dsns) == 4
    assert len(set(dsns)) == 1
    assert sum("creating" in text for text in said) == 1


async def test_who_attached_takes_over_when_the_starter_leaves(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """A short `meterd audit` that came first must not take the database away from meterd."""
    async with trio.open_nursery() as nursery:
        async with open_embedded_postgres(portal, data_dir, on_progress=said.append):
            second = await nursery.start(stay_attached, portal, data_dir)

        assert isinstance(second, EmbeddedPostgres)
        assert await until_answering(portal, second.dsn, "SELECT 1") == 1
        assert second.is_ours
        nursery.cancel_scope.cancel()


async def stay_attached(
    portal: AsyncioThread,
    data_dir: Path,
    task_status: trio.TaskStatus[EmbeddedPostgres] = trio.TASK_STATUS_IGNORED,
) -> None:
    async with open_embedded_postgres(portal, data_dir, on_progress=lambda _: None) as server:
        task_status.started(server)
        await server.keep_running()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGQUIT])
async def test_a_server_that_dies_is_started_again_at_the_same_address(
    portal: AsyncioThread, data_dir: Path, said: list[str], number: signal.Signals
) -> None:
    """What was committed before is there after."""
    async with (
        open_embedded_postgres(portal, data_dir, on_progress=said.append) as server,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(server.keep_running)
        await portal.run(ask, server.dsn, "CREATE TABLE kept AS SELECT 42 AS n")
        first_pid = server.pid
        assert first_pid is not None
        os.kill(first_pid, number)
        with trio.fail_after(30):
            while server.pid == first_pid:
                await trio.sleep(0.01)

        assert await until_answering(portal, server.dsn, "SELECT n FROM kept") == 42
        nursery.cancel_scope.cancel()

    assert any("starting it again" in text for text in said)


async def test_a_server_left_behind_is_stopped_and_replaced(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """One without a parent would outlive every meterd to come."""
    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        await portal.run(ask, server.dsn, "CREATE TABLE kept AS SELECT 42 AS n")
        cluster = server.cluster
        port = server.port
    left = postgres_cluster.start(cluster, port)
    await until_answering(portal, server.dsn, "SELECT 1")

    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        assert server.pid != left.pid
        assert left.wait(10) == 0
        assert await portal.run(ask, server.dsn, "SELECT n FROM kept") == 42

    assert "stopping the PostgreSQL that an earlier meterd left running" in said


async def test_orphans_of_a_killed_server_are_waited_for(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """After kill -9 of the postmaster its children hold the memory for a moment."""
    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        cluster, port = server.cluster, server.port
    left = postgres_cluster.start(cluster, port)
    await until_answering(portal, server.dsn, "SELECT 1")
    left.kill()
    left.wait(10)

    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        assert await portal.run(ask, server.dsn, "SELECT 1") == 1


async def test_a_half_made_cluster_is_made_anew(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """Killed in the middle of initdb, which refuses for ever what it left."""
    half_made = data_dir / "postgres.new"
    half_made.mkdir()
    (half_made / "PG_VERSION").write_text("18\n")
    (half_made / "base").mkdir()

    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        assert await portal.run(ask, server.dsn, "SELECT 1") == 1

    assert not half_made.exists()


async def test_a_cancelled_first_start_leaves_nothing_running_and_can_be_repeated(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """Ctrl-C while the database is being created, at several moments."""
    for delay_s in (0.05, 0.2, 0.4):
        with trio.move_on_after(delay_s):
            async with open_embedded_postgres(portal, data_dir, on_progress=said.append):
                pass
        assert servers_of(data_dir) == []

    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        assert await portal.run(ask, server.dsn, "SELECT 1") == 1


async def test_a_port_taken_by_somebody_else_is_replaced_at_the_next_start(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """The port is kept while it is ours to keep."""
    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        first_port = server.port

    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", first_port))
        stranger.listen()
        async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
            assert server.port != first_port
            assert await portal.run(ask, server.dsn, "SELECT 1") == 1


async def test_another_server_at_our_port_is_never_taken_for_ours(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """Two data directories that were told the same port: each keeps its own data."""
    other_dir = Path(tempfile.mkdtemp(prefix="meterd-test-other-"))
    async with open_embedded_postgres(portal, other_dir, on_progress=said.append) as other:
        async with open_embedded_postgres(portal, data_dir, on_progress=said.append):
            pass
        Cluster(directory=data_dir).keep_port(other.port)
        shutil.copy(other_dir / "postgres.password", data_dir / "postgres.password")
        answer = await portal.run(probe, other.port, other.password, data_dir / "postgres")

        assert answer.presence is Presence.STRANGER
        assert await portal.run(ask, other.dsn, "SELECT 1") == 1
    shutil.rmtree(other_dir)


async def test_the_log_is_bounded_while_the_server_writes_to_it(
    portal: AsyncioThread, data_dir: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that complains for a year must not fill the disk."""
    monkeypatch.setattr(postgres_cluster, "LOG_BYTES_MAX", 1_000)
    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        for _ in range(20):
            with pytest.raises(asyncpg.UndefinedColumnError):
                await portal.run(ask, server.dsn, "SELECT no_such_column")
        server.cluster.rotate_log()
        with pytest.raises(asyncpg.UndefinedTableError):
            await portal.run(ask, server.dsn, "SELECT 1 FROM no_such_table")
        log = server.cluster.log.read_text()

    assert "no_such_table" in log
    assert "no_such_column" not in log
    assert "no_such_column" in (data_dir / "postgres.log.1").read_text()


async def test_attaching_to_a_directory_without_data_creates_nothing(
    portal: AsyncioThread, data_dir: Path
) -> None:
    """A typing error in `meterd audit --data-dir` must not make an empty database that is fine."""
    missing = data_dir / "missing"
    with pytest.raises(EmbeddedPostgresError, match="there is no meterd data in"):
        async with attach_embedded_postgres(portal, missing):
            pytest.fail("there is nothing to attach to")

    assert not missing.exists()


async def test_attaching_starts_a_server_that_does_not_run_and_stops_it_again(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """`meterd keys create --data-dir` works without a running meterd."""
    async with open_embedded_postgres(portal, data_dir, on_progress=said.append):
        pass

    async with attach_embedded_postgres(portal, data_dir) as server:
        assert await portal.run(ask, server.dsn, "SELECT 1") == 1

    assert servers_of(data_dir) == []


async def test_a_cluster_of_another_version_is_refused_with_what_to_do(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """PostgreSQL would fail with a riddle."""
    (data_dir / "postgres").mkdir()
    (data_dir / "postgres" / "PG_VERSION").write_text("15\n")
    with pytest.raises(EmbeddedPostgresError, match="made by PostgreSQL 15.*pg_dump"):
        async with open_embedded_postgres(portal, data_dir, on_progress=said.append):
            pytest.fail("it must not start")


async def test_a_foreign_postgres_directory_is_not_touched(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """`--data-dir /var/lib/postgresql/18/main` is a mistake."""
    (data_dir / "PG_VERSION").write_text("18\n")
    with pytest.raises(EmbeddedPostgresError, match="give meterd one of its own"):
        async with open_embedded_postgres(portal, data_dir, on_progress=said.append):
            pytest.fail("it must not start")

    assert [path.name for path in data_dir.iterdir()] == ["PG_VERSION"]


async def test_a_server_that_cannot_start_is_reported_with_its_own_reason(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """The operator needs the last lines of the log, not an exit code."""
    async with open_embedded_postgres(portal, data_dir, on_progress=said.append):
        pass
    (data_dir / "postgres" / "global" / "pg_control").unlink()

    with pytest.raises(EmbeddedPostgresError, match="control file|database system"):
        async with open_embedded_postgres(portal, data_dir, on_progress=said.append):
            pytest.fail("it must not start")


@as_root
async def test_under_root_the_server_runs_as_another_account(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """PostgreSQL refuses root; only its own directory belongs to the account."""
    data_dir.chmod(0o700)
    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        assert server.pid is not None
        uid = psutil.Process(server.pid).uids().real

    assert uid != 0
    assert data_dir.stat().st_uid == 0
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o710
    assert (data_dir / "postgres").stat().st_uid == uid
    assert any("will run as the account" in text for text in said)


@as_root
async def test_under_root_a_closed_parent_is_named_and_left_closed(
    portal: AsyncioThread, data_dir: Path, said: list[str]
) -> None:
    """A data directory below /root: an error that says which directory and what to do."""
    closed = data_dir / "home"
    closed.mkdir(mode=0o700)
    data_dir.chmod(0o755)

    with pytest.raises(EmbeddedPostgresError, match=f"because {closed} lets no other"):
        async with open_embedded_postgres(portal, closed / "data", on_progress=said.append):
            pytest.fail("it must not start")

    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@as_root
async def test_under_root_without_useradd_a_common_account_is_used(
    portal: AsyncioThread, data_dir: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slim container has `nobody` and no tool to create anybody."""
    monkeypatch.setattr(server_account, "ACCOUNT_NAME", "meterd-absent")
    monkeypatch.setattr(server_account, "FALLBACK_NAMES", ("no-such-account", "nobody"))
    monkeypatch.setattr(server_account, "CREATE_COMMANDS", (("no-such-program",),))
    async with open_embedded_postgres(portal, data_dir, on_progress=said.append) as server:
        assert await portal.run(ask, server.dsn, "SELECT 1") == 1

    assert (data_dir / "postgres").stat().st_uid == pwd.getpwnam("nobody").pw_uid


@as_root
def test_under_root_without_any_account_the_way_out_is_named(
    data_dir: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing left to try; the sentence says what a person can do."""
    monkeypatch.setattr(server_account, "ACCOUNT_NAME", "meterd-absent")
    monkeypatch.setattr(server_account, "FALLBACK_NAMES", ())
    monkeypatch.setattr(server_account, "CREATE_COMMANDS", ())

    with pytest.raises(EmbeddedPostgresError, match="or run meterd as an ordinary user"):
        server_account.choose_account(data_dir / "postgres", said.append)


PROGRAM = """
import os, sys, pathlib, trio, asyncpg
from meterd.adapters.asyncio_thread import open_asyncio_thread
from meterd.adapters.embedded_postgres import open_embedded_postgres
import asyncpg.connect_utils, encodings.idna, getpass, ssl  # loaded before the account changes

async def main():
    async with open_asyncio_thread() as portal:
        async with open_embedded_postgres(
            portal, pathlib.Path(sys.argv[1]), on_progress=lambda text: None
        ) as server:
            print("ready", server.pid, os.geteuid(), flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline)
    print("stopped", flush=True)

if len(sys.argv) > 2:
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
trio.run(main)
"""


def run_program(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a process that opens the server, says so, and stops when it is given a line."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(directory), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def ready_line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    words = process.stdout.readline().split()
    assert words[:1] == ["ready"], words
    return words


@as_root
@pytest.mark.slow
def test_an_ordinary_user_runs_the_server_as_itself(data_dir: Path) -> None:
    """The common case on a laptop, tried here by a process that gave root up."""
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(data_dir, nobody, -1)
    with run_program(data_dir, str(nobody)) as process:
        _, server_pid, uid = ready_line(process)
        server_uid = psutil.Process(int(server_pid)).uids().real
        out, _ = process.communicate("stop\n", timeout=30)

    assert (int(uid), server_uid) == (nobody, nobody)
    assert out == "stopped\n"
    assert process.returncode == 0


@pytest.mark.slow
def test_the_server_ends_when_its_meterd_is_killed_and_the_next_start_is_clean(
    data_dir: Path,
) -> None:
    """Kill -9 of meterd leaves no server behind, also in a process with other threads."""
    with run_program(data_dir) as process:
        server = psutil.Process(int(ready_line(process)[1]))
        process.kill()
        server.wait(timeout=30)

    with run_program(data_dir) as process:
        ready_line(process)
        out, _ = process.communicate("stop\n", timeout=30)

    assert out == "stopped\n"
    log = (data_dir / "postgres.log").read_text()
    assert "received fast shutdown request" in log
    assert "database system was interrupted" not in log
