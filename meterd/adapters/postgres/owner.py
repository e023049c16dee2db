"""One owner per database: who may write facts, and how everybody else learns that they may not.

Rule 1: the owner holds a session advisory lock on a connection of its own. A killed owner's lock
is free as soon as PostgreSQL notices: at once for a dead process, within 20 s for a dead host.
Rule 2: who gets the lock raises the epoch, and every flush names its epoch: whoever is late, was
paused or cut off, writes nothing. The lock is for courtesy, the epoch is for safety.
Rule 3: a lost connection is not lost ownership. When PostgreSQL is back and nobody raised the
epoch meanwhile, the same owner takes the lock again and goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import attrs
import trio

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.pool import (
    Connection,
    DedicatedConnection,
    open_dedicated_connection,
)
from meterd.adapters.postgres.statements import statements
from meterd.core.units import from_datetime, rfc3339
from meterd.errors import OwnedElsewhereError, OwnershipLostError, StoreUnavailableError


LOCK_KEY = 0x6D65746572640002
"""Key of the advisory lock: "meterd" in ASCII and a number of our own; migrations have another."""

LOCK_POLL_S = 0.1
"""Seconds between attempts to get a lock that another process holds."""

CHECK_S = 2.0
"""Seconds between looks whether connection and epoch are still ours."""

ANSWER_S = 5.0
"""Seconds to wait for an answer on the owner's connection before it counts as lost."""

RETRY_DELAY_S_MIN = 0.1
RETRY_DELAY_S_MAX = 2.0
"""Seconds between attempts to get connection and lock back, doubling."""


@attrs.frozen(kw_only=True)
class Holder:
    """Who owns the database, as stored."""

    epoch: int
    owner: str
    taken_at_ms: int


@attrs.define(eq=False)
class Ownership:
    """A database that is ours until somebody raises the epoch."""

    portal: AsyncioThread = attrs.field(repr=False)
    dsn: str = attrs.field(repr=False)
    epoch: int
    _connection: DedicatedConnection = attrs.field(repr=False)
    _open: contextlib.AsyncExitStack = attrs.field(repr=False)
    """Closes the first connection."""
    is_held: bool = attrs.field(default=True, init=False)
    """False while the connection is lost: for readiness. Flushes are safe either way."""

    async def keep(
        self,
        *,
        on_lost: Callable[[], None] = lambda: None,
        on_regained: Callable[[], None] = lambda: None,
    ) -> NoReturn:
        """Watch the connection, and get lock and connection back when they are lost.

        For a task of the composition root; the callbacks are called on the Trio thread and must
        not wait.
        Errors: OwnershipLostError when another process has raised the epoch: stop the process.
        """
        try:
            await self._watch(self._connection)
        except StoreUnavailableError:
            self.is_held = False
            on_lost()
        # A session that is only cut off from us still has the lock until it is closed.
        await self._open.aclose()
        delay_s = RETRY_DELAY_S_MIN
        while True:
            await trio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_DELAY_S_MAX)
            with contextlib.suppress(StoreUnavailableError):
                await self._regain(on_lost, on_regained)

    async def _watch(self, connection: DedicatedConnection) -> None:
        """Return never; raise when the connection or the ownership is lost."""
        while True:
            self._check(await _holder(connection))
            await _sleep_while_open(connection)

    async def _regain(self, on_lost: Callable[[], None], on_regained: Callable[[], None]) -> None:
        """Hold lock and connection again until they are lost again."""
        async with open_dedicated_connection(self.portal, self.dsn, name="owner") as connection:
            # Who waits for the lock raises the epoch as soon as it has it: look at both.
            while not await _try_lock(connection):
                self._check(await _holder(connection))
                await trio.sleep(LOCK_POLL_S)
            self._check(await _holder(connection))
            self.is_held = True
            on_regained()
            try:
                await self._watch(connection)
            except StoreUnavailableError:
                self.is_held = False
                on_lost()
                raise

    def _check(self, holder: Holder) -> None:
        if holder.epoch != self.epoch:
            raise OwnershipLostError(
                f"{holder.owner} has owned the database since {rfc3339(holder.taken_at_ms)}"
            )


async def _nothing() -> None:
    """Prepare nothing."""


@contextlib.asynccontextmanager
async def own_database(
    portal: AsyncioThread,
    dsn: str,
    *,
    owner: str,
    wait_ms: int,
    takeover: bool = False,
    prepare: Callable[[], Awaitable[object]] = _nothing,
) -> AsyncIterator[Ownership]:
    """Become the owner of the database for the length of the block.

    `owner` is what others are told: host and process. With `takeover` the present owner is fenced
    off and disconnected first; it stops by itself. `prepare` runs when nobody else can write any
    more: migrations, before which there may be no table at all.
    Units:  milliseconds to wait for another owner to stop; 0 tries once.
    Errors: OwnedElsewhereError when it does not; StoreUnavailableError; StoreRejectedError.
    Source: queries/owner.sql, tables meterd_owner and pg_locks.
    """
    async with contextlib.AsyncExitStack() as opened:
        connection = await opened.enter_async_context(
            open_dedicated_connection(portal, dsn, name="owner")
        )
        if takeover:
            await _push_out(connection, owner)
        await _lock(connection, wait_ms)
        # Who lost the lock without noticing is fenced off before the tables change under it.
        epoch = await _bump(connection, owner) if await _has_tables(connection) else None
        await prepare()
        if epoch is None:
            epoch = await _bump(connection, owner)
        yield Ownership(portal, dsn, epoch, connection, opened)


async def holder_of(portal: AsyncioThread, dsn: str) -> Holder:
    """Return who owns, or owned last, the database. Errors: as `own_database`."""
    async with open_dedicated_connection(portal, dsn, name="look") as connection:
        return await _holder(connection)


async def _lock(connection: DedicatedConnection, wait_ms: int) -> None:
    deadline_s = trio.current_time() + wait_ms / 1_000
    while not await _try_lock(connection):
        if trio.current_time() >= deadline_s:
            if not await _has_tables(connection):
                raise OwnedElsewhereError("another meterd is preparing this database: wait for it")
            holder = await _holder(connection)
            raise OwnedElsewhereError(
                f"another meterd owns this database: {holder.owner}, since "
                f"{rfc3339(holder.taken_at_ms)}. Stop it, or start with --takeover to stop it "
                "from here"
            )
        await trio.sleep(LOCK_POLL_S)


async def _push_out(connection: DedicatedConnection, owner: str) -> None:
    """Raise the epoch without the lock, then end the sessions that hold it."""
    if await _has_tables(connection):
        await _bump(connection, owner)

    async def work(session: Connection) -> None:
        await session.fetch(statements("owner")["terminate_holder"], LOCK_KEY)

    await connection.run("disconnect the present owner", work)


async def _has_tables(connection: DedicatedConnection) -> bool:
    async def work(session: Connection) -> bool:
        return bool(await session.fetchval(statements("owner")["exists"]))

    return await connection.run("look for meterd's tables", work)


async def _bump(connection: DedicatedConnection, owner: str) -> int:
    async def work(session: Connection) -> int:
        return int(await session.fetchval(statements("owner")["bump"], owner))

    return await connection.run("become the owner", work)


async def _try_lock(connection: DedicatedConnection) -> bool:
    async def work(session: Connection) -> bool:
        return bool(await session.fetchval(statements("owner")["lock"], LOCK_KEY))

    return await connection.run("lock the database", work, timeout_s=ANSWER_S)


async def _holder(connection: DedicatedConnection) -> Holder:
    async def work(session: Connection) -> Any:
        return await session.fetchrow(statements("owner")["owner"])

    record = await connection.run("see who owns the database", work, timeout_s=ANSWER_S)
    return Holder(
        epoch=record["epoch"],
        owner=record["owner"],
        taken_at_ms=from_datetime(record["taken_at"]),
    )


async def _sleep_while_open(connection: DedicatedConnection) -> None:
    """Sleep CHECK_S, less when the connection is seen to be closed."""
    deadline_s = trio.current_time() + CHECK_S
    # asyncpg hears of a closed connection on its own thread, so there is no event to wait for.
    while trio.current_time() < deadline_s and not connection.is_closed:  # noqa: ASYNC110
        await trio.sleep(LOCK_POLL_S)
