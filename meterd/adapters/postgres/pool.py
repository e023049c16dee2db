"""Connections to PostgreSQL: two pools, so that neither work can starve the other.

Rule 1: the flush has its own connections. Activations, dashboards and exports use the others.
Rule 2: everything has a deadline: connecting, waiting for a connection, the work, giving the
connection back. A frozen server answers nothing, not even an error.
Rule 3: work runs on the asyncio loop. It changes session state with SET LOCAL only, because a
connection goes back without the round trip that would reset it; an open transaction is undone.
Pools connect when they are first used, so they can be opened while PostgreSQL is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import asyncpg
import attrs
import trio

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.errors import translated


T = TypeVar("T")
Connection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)
Work: TypeAlias = Callable[[Connection], Awaitable[T]]
"""A coroutine function that is given a connection on the asyncio loop."""

FLUSH_CONNECTIONS = 2
"""One flush is under way at a time; the second is for its bisection and for operators' writes."""

READ_CONNECTIONS = 8
"""Reads at once. PostgreSQL forks a process for each; 50 is the embedded server's limit."""

CONNECT_S = 5.0
"""Seconds to connect and authenticate."""

ACQUIRE_S = 5.0
"""Seconds to wait for a free connection before the store counts as unavailable."""

WRITE_S = 30.0
"""Seconds a write may take in all, and PostgreSQL's own limit for each of its statements."""

READ_S = 10.0
"""Seconds a read may take in all, and PostgreSQL's own limit for each of its statements."""

RELEASE_S = 2.0
"""Seconds to give a connection back; then it is dropped and a new one made when needed."""

KEEP_ALIVES = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
"""Seconds, seconds, probes: the server drops what belongs to a vanished meterd in 20 s."""


class Lane(Enum):
    """Which connections a piece of work may use."""

    FLUSH = "flush"
    READ = "read"


@attrs.frozen(kw_only=True)
class LaneUse:
    """How busy a lane is, for metrics."""

    connections: int
    idle: int
    limit: int


@attrs.define(eq=False)
class PostgresPools:
    """The way to PostgreSQL for tasks of the Trio run."""

    portal: AsyncioThread
    dsn: str = attrs.field(repr=False)
    _pools: dict[Lane, asyncpg.Pool[asyncpg.Record]]

    async def write(self, action: str, work: Work[T], *, timeout_s: float = WRITE_S) -> T:
        """Return what `work` returns, on a connection of the flush lane.

        Units:  `timeout_s` seconds for the work, after at most ACQUIRE_S for a connection.
        Errors: StoreUnavailableError (outcome unknown), StoreRejectedError, PortalClosedError.
        """
        return await self._on(Lane.FLUSH, action, work, timeout_s)

    async def read(self, action: str, work: Work[T], *, timeout_s: float = READ_S) -> T:
        """Return what `work` returns, on a connection of the read lane. Errors: as `write`."""
        return await self._on(Lane.READ, action, work, timeout_s)

    async def read_of(self, organization_id: str, action: str, work: Work[T]) -> T:
        """Return what `work` reads while nothing of any other organization can be seen.

        For what a customer asks: PostgreSQL itself holds the row-level security of migration 0008
        against a query that forgot its condition. Errors: as `write`.
        """
        return await self.read(action, functools.partial(_walled, organization_id, work))

    async def write_of(self, organization_id: str, action: str, work: Work[T]) -> T:
        """Return what `work` returns, in one transaction behind the same wall as `read_of`."""
        return await self.write(action, functools.partial(_walled, organization_id, work))

    def use(self, lane: Lane) -> LaneUse:
        """Return how busy the lane is; approximate, because it is read from another thread."""
        pool = self._pools[lane]
        return LaneUse(
            connections=pool.get_size(), idle=pool.get_idle_size(), limit=pool.get_max_size()
        )

    async def drop_connections(self) -> None:
        """Have every connection replaced when it is next used, after a failover for example."""
        for pool in self._pools.values():
            await self.portal.run(_call, pool.expire_connections)

    async def _on(self, lane: Lane, action: str, work: Work[T], timeout_s: float) -> T:
        return await self.portal.run(_in_pool, self._pools[lane], action, work, timeout_s)


@attrs.define(eq=False)
class DedicatedConnection:
    """One connection outside of the pools, for what lives as long as its session."""

    portal: AsyncioThread
    _connection: asyncpg.Connection[asyncpg.Record]

    @property
    def is_closed(self) -> bool:
        """True when the connection is known to be gone; a lost peer shows only when used."""
        return bool(self._connection.is_closed())

    async def run(self, action: str, work: Work[T], *, timeout_s: float = READ_S) -> T:
        """Return what `work` returns on this connection. Errors: as `PostgresPools.write`."""
        return await self.portal.run(_with_deadline, self._connection, action, work, timeout_s)


@contextlib.asynccontextmanager
async def open_postgres_pools(
    portal: AsyncioThread,
    dsn: str,
    *,
    flush_connections: int = FLUSH_CONNECTIONS,
    read_connections: int = READ_CONNECTIONS,
) -> AsyncIterator[PostgresPools]:
    """Give pools that connect when used, and close them when the block is left.

    A server that is away, or a URL that makes no sense, shows when they are used.
    """
    pools: dict[Lane, asyncpg.Pool[asyncpg.Record]] = {}
    try:
        for lane, size, limit_s in (
            (Lane.FLUSH, flush_connections, WRITE_S),
            (Lane.READ, read_connections, READ_S),
        ):
            pools[lane] = await portal.run(_make_pool, dsn, lane, size, limit_s)
        yield PostgresPools(portal, dsn, pools)
    finally:
        with trio.CancelScope(shield=True):  # bounded by CONNECT_S for each pool
            for pool in pools.values():
                await portal.run(_close_pool, pool)


@contextlib.asynccontextmanager
async def open_dedicated_connection(
    portal: AsyncioThread, dsn: str, *, name: str
) -> AsyncIterator[DedicatedConnection]:
    """Give one connection of its own, named `meterd <name>` in pg_stat_activity.

    Errors: StoreUnavailableError, StoreRejectedError when connecting fails.
    """
    connection = await portal.run(_connect, dsn, name)
    try:
        yield DedicatedConnection(portal, connection)
    finally:
        with trio.CancelScope(shield=True):
            await portal.run(_close_connection, connection)


# From here on everything runs on the asyncio loop.


async def _make_pool(
    dsn: str, lane: Lane, size: int, limit_s: float
) -> asyncpg.Pool[asyncpg.Record]:
    return await asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=size,
        timeout=CONNECT_S,
        reset=_keep_session,
        server_settings=_session_settings(lane.value, limit_s),
    )


async def _connect(dsn: str, name: str) -> asyncpg.Connection[asyncpg.Record]:
    with translated(f"connect to PostgreSQL at {_place(dsn)}"):
        return await asyncpg.connect(
            dsn, timeout=CONNECT_S, server_settings=_session_settings(name, WRITE_S)
        )


def _place(dsn: str) -> str:
    """Return host and port as the URL names them; the other parts are nobody's business."""
    return urlsplit(dsn).netloc.rpartition("@")[2] or "its default place"


def _session_settings(name: str, limit_s: float) -> dict[str, str]:
    limit_ms = str(int(limit_s * 1_000))
    return {
        "application_name": f"meterd {name}",
        "statement_timeout": limit_ms,
        "idle_in_transaction_session_timeout": limit_ms,
        "timezone": "UTC",
        **KEEP_ALIVES,
    }


async def _keep_session(_connection: Any) -> None:
    """Replace the reset query of asyncpg, which would cost a round trip for every use."""


async def _walled(organization_id: str, work: Work[T], connection: Connection) -> T:
    async with connection.transaction():
        await connection.execute("SELECT set_config('app.organization', $1, true)", organization_id)
        return await work(connection)


async def _in_pool(
    pool: asyncpg.Pool[asyncpg.Record], action: str, work: Work[T], timeout_s: float
) -> T:
    with translated(action):
        connection = await pool.acquire(timeout=ACQUIRE_S)
        try:
            async with asyncio.timeout(timeout_s):
                return await work(connection)
        finally:
            await _release(pool, connection)


async def _release(
    pool: asyncpg.Pool[asyncpg.Record],
    connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record],
) -> None:
    # The work is over: a connection that cannot be given back is dropped by the pool, and its
    # trouble must not hide the result.
    with contextlib.suppress(
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError
    ):
        await pool.release(connection, timeout=RELEASE_S)


async def _with_deadline(
    connection: asyncpg.Connection[asyncpg.Record], action: str, work: Work[T], timeout_s: float
) -> T:
    with translated(action):
        async with asyncio.timeout(timeout_s):
            return await work(connection)


async def _close_pool(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    try:
        await asyncio.wait_for(pool.close(), CONNECT_S)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        pool.terminate()


async def _close_connection(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    try:
        await connection.close(timeout=CONNECT_S)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        connection.terminate()


async def _call(async_fn: Callable[[], Awaitable[None]]) -> None:
    await async_fn()
