"""The database of a command that works on stored data, beside a running meterd or without one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import attrs
import click

from meterd.adapters.asyncio_thread import AsyncioThread, open_asyncio_thread
from meterd.adapters.embedded_postgres import attach_embedded_postgres
from meterd.adapters.postgres.pool import PostgresPools, open_postgres_pools
from meterd.config import Config


@attrs.frozen
class OpenDatabase:
    """Pools on the configured database, and what else is opened with its URL."""

    portal: AsyncioThread
    dsn: str = attrs.field(repr=False)
    pools: PostgresPools


@contextlib.asynccontextmanager
async def open_database(config: Config) -> AsyncIterator[OpenDatabase]:
    """Open the configured database; an embedded one is attached to, or started for the block.

    Errors: EmbeddedPostgresError; StoreUnavailableError when it is used.
    """
    async with contextlib.AsyncExitStack() as opened:
        portal = await opened.enter_async_context(open_asyncio_thread())
        if config.database_url is not None:
            dsn = config.database_url.get_secret_value()
        else:
            assert config.data_dir is not None, "the configuration names one of the two"
            server = await opened.enter_async_context(
                attach_embedded_postgres(
                    portal, config.data_dir, on_progress=lambda text: click.echo(text, err=True)
                )
            )
            dsn = server.dsn
        pools = await opened.enter_async_context(open_postgres_pools(portal, dsn))
        yield OpenDatabase(portal, dsn, pools)
