"""The embedded PostgreSQL: create it once, start it, keep it running, stop it cleanly.

A server lives: absent -> starting (recovering) -> ready -> stopped, and again while meterd lives.
Rule 1: one process starts the server of a data directory, the one that holds its lock. Any other
uses the running server, and takes over when the lock becomes free.
Rule 2: a server left behind by a killed meterd is stopped and started anew: one that is no child
of ours would outlive us in turn, and would keep the settings of another version.
Rule 3: its port and password never change while we run, so a pool heals without being told.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import attrs
import trio

from meterd.adapters import postgres_cluster
from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.errors import translated
from meterd.adapters.postgres_cluster import Cluster
from meterd.adapters.postgres_probe import (
    CONNECT_TIMEOUT_S,
    DATABASE,
    HOST,
    USER,
    Answer,
    Presence,
    probe,
)
from meterd.errors import EmbeddedPostgresError


READY_S_MAX = 1_800.0
"""Seconds a server may take to be ready. Recovery reads 240 MB of log a second, so minutes are
possible after a crash under load; giving up earlier would only start the recovery again."""

ATTACH_S_MAX = 60.0
"""Seconds to wait for a server that another process is starting or stopping."""

STOP_S_MAX = 60.0
"""Seconds a fast shutdown may take; it writes a checkpoint. Then it is told to drop everything."""

ABORT_S_MAX = 15.0
"""Seconds an immediate shutdown may take; the server itself kills what lingers after five."""

POLL_S = 0.02
"""Seconds between looks at a starting server; it is usually ready in under 0.1 s."""

RESTART_DELAY_S_MIN = 0.1
RESTART_DELAY_S_MAX = 10.0
"""Seconds before a dead server is started again, doubling from the first to the second."""

STABLE_S = 60.0
"""Seconds a server must have run for its next restart to be quick again."""

LOOK_AFTER_S = 30.0
"""Seconds between looks at the size of the log."""

LOCK_POLL_S = 0.5
"""Seconds between attempts to take over from the process that started the server."""

PROGRESS_S = 2.0
"""Seconds between reports of the same progress."""


@attrs.define(eq=False)
class EmbeddedPostgres:
    """A running server on 127.0.0.1 and how to connect to it."""

    portal: AsyncioThread = attrs.field(repr=False)
    cluster: Cluster
    port: int
    password: str = attrs.field(repr=False)
    say: Callable[[str], None] = attrs.field(repr=False)
    lock: int | None
    _process: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False, repr=False)

    @property
    def dsn(self) -> str:
        """The URL to connect with, the same for the life of this object. Contains the password."""
        return f"postgresql://{USER}:{self.password}@{HOST}:{self.port}/{DATABASE}"

    @property
    def is_ours(self) -> bool:
        """True when this process started the server and will stop it."""
        return self.lock is not None

    @property
    def pid(self) -> int | None:
        """The server's process, when we started it."""
        return self._process.pid if self._process is not None else None

    async def keep_running(self) -> None:
        """Start the server again whenever it ends, and keep its log bounded. Never returns.

        For a task of the composition root. A process that merely attached takes over when the
        starter goes away. Failures are said and tried again: enforcement goes on meanwhile.
        """
        delay_s = RESTART_DELAY_S_MIN
        while True:
            if not self.is_ours:
                await self._take_over()
            began_s = trio.current_time()
            await self._ended()
            if trio.current_time() - began_s >= STABLE_S:
                delay_s = RESTART_DELAY_S_MIN
            self.say(f"PostgreSQL ended; starting it again in {delay_s:g} s")
            await trio.sleep(delay_s)
            delay_s = min(delay_s * 2, RESTART_DELAY_S_MAX)
            try:
                await self.start()
            except EmbeddedPostgresError as error:
                self.say(f"PostgreSQL cannot be started: {error}")

    async def start(self) -> None:
        """Start the server on our port, after stopping one left behind, and wait until ready.

        Errors: EmbeddedPostgresError with the end of the server's log.
        """
        await self.stop_left_behind()
        deadline_s = trio.current_time() + STOP_S_MAX
        while True:
            self.cluster.rotate_log()
            log_start_bytes = self.cluster.log_bytes()
            self._process = postgres_cluster.start(self.cluster, self.port)
            try:
                await self._ready(self._process, log_start_bytes)
            except _StillHeldError as error:
                # The previous server, or an orphan of it, is still on its way out.
                if trio.current_time() > deadline_s:
                    raise EmbeddedPostgresError(str(error)) from error
                await trio.sleep(RESTART_DELAY_S_MIN)
            else:
                return

    async def stop(self) -> None:
        """Stop the server if it is ours: fast and clean, by force after STOP_S_MAX."""
        if self._process is not None:
            await self._stop_process(self._process.pid, self._process)
            self._process = None

    async def _ended(self) -> None:
        """Return when our server's process has ended."""
        process = self._process
        while process is not None and process.poll() is None:
            with trio.move_on_after(LOOK_AFTER_S):
                await _process_ended(process.pid)
            with contextlib.suppress(OSError):
                await trio.to_thread.run_sync(self.cluster.rotate_log)

    async def _take_over(self) -> None:
        # A file lock has no event to wait for, and a thread that blocks in it cannot be cancelled.
        while self.lock is None:
            await trio.sleep(LOCK_POLL_S)
            self.lock = postgres_cluster.take_lock(self.cluster.directory)
        self.cluster = postgres_cluster.prepare_account(self.cluster.directory, self.say)
        self.say("the process that had started PostgreSQL is gone; starting it here")

    async def _ready(self, process: subprocess.Popen[bytes], log_start_bytes: int) -> None:
        began_s = said_s = trio.current_time()
        while True:
            answer = await self._probe(self.port)
            if answer.presence is Presence.OURS and answer.postmaster_pid == process.pid:
                return
            if process.poll() is not None:
                raise self._start_failure(process.returncode, log_start_bytes)
            now_s = trio.current_time()
            if now_s - began_s > READY_S_MAX:
                await self._stop_process(process.pid, process)
                raise EmbeddedPostgresError(
                    f"PostgreSQL was not ready after {READY_S_MAX:g} s: {answer.detail}"
                )
            if now_s - said_s > PROGRESS_S:
                said_s = now_s
                self.say(
                    f"waiting for PostgreSQL, which is recovering, for {now_s - began_s:.0f} s: "
                    f"{answer.detail}"
                )
            await trio.sleep(POLL_S)

    def _start_failure(self, returncode: int, log_start_bytes: int) -> EmbeddedPostgresError:
        log = self.cluster.log_since(log_start_bytes)
        text = f"PostgreSQL ended with {returncode} while starting; its log says: {log}"
        if 'lock file "postmaster.pid" already exists' in log or (
            "pre-existing shared memory block" in log
        ):
            return _StillHeldError(text)
        return EmbeddedPostgresError(text)

    async def _probe(self, port: int) -> Answer:
        return await self.portal.run(probe, port, self.password, self.cluster.pgdata)

    async def stop_left_behind(self) -> None:
        """Stop a server of ours that a killed process left running; wait for one that stops."""
        port = self.cluster.read_port()
        if port is None:
            return
        answer = await self._probe(port)
        with trio.move_on_after(STOP_S_MAX):
            while answer.presence is Presence.NOT_READY:
                await trio.sleep(POLL_S)
                answer = await self._probe(port)
        if answer.presence is Presence.OURS and answer.postmaster_pid is not None:
            pid = answer.postmaster_pid
            if not postgres_cluster.is_postmaster(pid, self.cluster):
                raise EmbeddedPostgresError(
                    f"a PostgreSQL that this process cannot see, perhaps in another container, "
                    f"serves {self.cluster.pgdata}: stop it first"
                )
            self.say("stopping the PostgreSQL that an earlier meterd left running")
            await self._stop_process(pid, None)

    async def _stop_process(self, pid: int, process: subprocess.Popen[bytes] | None) -> None:
        for stop_signal, wait_s in (
            (signal.SIGINT, STOP_S_MAX),
            (signal.SIGQUIT, ABORT_S_MAX),
            (signal.SIGKILL, ABORT_S_MAX),
        ):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, stop_signal)
            with trio.move_on_after(wait_s):
                await _process_ended(pid)
                break
            self.say(f"PostgreSQL did not stop within {wait_s:g} s of {stop_signal.name}")
        if process is not None:
            process.poll()  # takes the child's status, so that it leaves no zombie


class _StillHeldError(EmbeddedPostgresError):
    """The cluster is still held by processes of its previous server; they are ending."""


async def _process_ended(pid: int) -> None:
    """Return when the process has ended; it need not be our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = select.poll()  # `select` itself takes no descriptor above 1,023
    ended.register(descriptor, select.POLLIN)
    try:
        # Readable also when it is a zombie that its parent has not yet taken note of.
        while not ended.poll(0):
            await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


async def _create_database(port: int, password: str) -> None:
    """Create the database in a new cluster; called by the holder of the lock only."""
    with translated(f"create the database {DATABASE}"):
        connection = await asyncpg.connect(
            host=HOST,
            port=port,
            user=USER,
            password=password,
            database="postgres",
            ssl=False,
            timeout=CONNECT_TIMEOUT_S,
        )
        try:
            await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            connection.terminate()


@contextlib.asynccontextmanager
async def open_embedded_postgres(
    portal: AsyncioThread,
    data_dir: Path,
    *,
    on_progress: Callable[[str], None],
) -> AsyncIterator[EmbeddedPostgres]:
    """Give a ready server of this data directory, creating it at the first start.

    If another process has started it, that server is used and left running at the end.
    Run `keep_running` of what you get in a task, or a server that dies stays dead.
    `on_progress` gets sentences for the operator and must not wait.
    Errors: EmbeddedPostgresError, saying what to do. Source: files of `postgres_cluster`.
    """
    directory = postgres_cluster.prepare_directory(data_dir)
    server = await _start_or_attach(portal, directory, on_progress)
    try:
        yield server
    finally:
        with trio.CancelScope(shield=True):  # bounded by the stop deadlines
            await server.stop()
        if server.lock is not None:
            os.close(server.lock)


@contextlib.asynccontextmanager
async def attach_embedded_postgres(
    portal: AsyncioThread,
    data_dir: Path,
    *,
    on_progress: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[EmbeddedPostgres]:
    """Give the running server of this data directory, or start it for the length of the block.

    For command line tools: never creates anything. Errors: EmbeddedPostgresError.
    """
    with postgres_cluster.translated(f"look into {data_dir}"):
        version = Cluster(directory=data_dir).version
    if version is None:
        raise EmbeddedPostgresError(
            f"there is no meterd data in {data_dir}: `meterd serve --data-dir {data_dir}` makes it"
        )
    async with open_embedded_postgres(portal, data_dir, on_progress=on_progress) as server:
        yield server


async def _start_or_attach(
    portal: AsyncioThread, directory: Path, say: Callable[[str], None]
) -> EmbeddedPostgres:
    deadline_s = trio.current_time() + ATTACH_S_MAX
    while True:
        lock = postgres_cluster.take_lock(directory)
        if lock is not None:
            return await _start_first(portal, directory, say, lock)
        server = await _attached(portal, directory, say)
        if server is not None:
            return server
        if trio.current_time() > deadline_s:
            raise EmbeddedPostgresError(
                f"another meterd holds {directory}, but its PostgreSQL does not answer"
            )
        await trio.sleep(LOCK_POLL_S / 10)


async def _start_first(
    portal: AsyncioThread, directory: Path, say: Callable[[str], None], lock: int
) -> EmbeddedPostgres:
    server: EmbeddedPostgres | None = None
    is_ready = False
    try:
        cluster = postgres_cluster.prepare_account(directory, say)
        if cluster.version is None:
            say(f"creating a PostgreSQL database in {directory}")
            await postgres_cluster.create(cluster)
        server = EmbeddedPostgres(
            portal=portal,
            cluster=cluster,
            port=0,
            password=cluster.read_password(),
            say=say,
            lock=lock,
        )
        await server.stop_left_behind()
        server.port = postgres_cluster.choose_port(cluster)
        cluster.keep_port(server.port)
        await server.start()
        answer = await portal.run(probe, server.port, server.password, cluster.pgdata)
        if not answer.has_database:
            await portal.run(_create_database, server.port, server.password)
        is_ready = True
        return server
    finally:
        if not is_ready:
            with trio.CancelScope(shield=True):
                if server is not None:
                    await server.stop()
            os.close(lock)


async def _attached(
    portal: AsyncioThread, directory: Path, say: Callable[[str], None]
) -> EmbeddedPostgres | None:
    """Return the server that another process runs, or None while there is none to talk to."""
    cluster = Cluster(directory=directory)
    port = cluster.read_port()
    if port is None:
        return None
    password = cluster.read_password()
    answer = await portal.run(probe, port, password, cluster.pgdata)
    if not answer.has_database:  # not ours, not ready, or not yet created by its starter
        return None
    return EmbeddedPostgres(
        portal=portal, cluster=cluster, port=port, password=password, say=say, lock=None
    )
