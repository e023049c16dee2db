"""The database of a command that works on stored data, beside a running meterd or without one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import attrs
import click

from meterd.adapters.asyncio_thread import AsyncioThread, open_asyncio_thread
from meterd.adapters.embedded_postgres import attach_embedded_postgres, open_embedded_postgres
from meterd.adapters.postgres.pool import PostgresPools, open_postgres_pools
from meterd.config import Config


@attrs.frozen
class OpenDatabase:
    """Pools on the configured database, and what else is opened with its URL."""

    portal: AsyncioThread
    dsn: str = attrs.field(repr=False)
    pools: PostgresPools


@contextlib.asynccontextmanager
async def open_server(
    config: Config, *, makes_new: bool = False
) -> AsyncIterator[tuple[AsyncioThread, str]]:
    """Give the URL of the configured database; an embedded one is attached to, or started.

    With `makes_new` it is created if there is none. Errors: EmbeddedPostgresError.
    """
    embedded = open_embedded_postgres if makes_new else attach_embedded_postgres
    async with open_asyncio_thread() as portal:
        if config.database_url is not None:
            yield portal, config.database_url.get_secret_value()
            return
        assert config.data_dir is not None, "the configuration names one of the two"
        async with embedded(
            portal, config.data_dir, on_progress=lambda text: click.echo(text, err=True)
        ) as server:
            yield portal, server.dsn


@contextlib.asynccontextmanager
async def open_database(config: Config) -> AsyncIterator[OpenDatabase]:
    """Open pools on the configured database for the block.

    Errors: as `open_server`; StoreUnavailableError when it is used.
    """
    async with (
        open_server(config) as (portal, dsn),
        open_postgres_pools(portal, dsn) as pools,
    ):
        yield OpenDatabase(portal, dsn, pools)
