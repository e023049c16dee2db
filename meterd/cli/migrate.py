"""`meterd migrate`: bring the database to this meterd's schema, or tell how far it is from it."""

from __future__ import annotations

import click
import trio

from meterd.adapters.asyncio_thread import AsyncioThread, open_asyncio_thread
from meterd.adapters.embedded_postgres import attach_embedded_postgres
from meterd.adapters.postgres.migrate import Migrations
from meterd.cli import ExitCode
from meterd.cli._options import DATABASE, configured
from meterd.config import Config, LoadedConfig


@click.command()
@click.option(
    "--check", is_flag=True, help="Change nothing; exit 1 when there are migrations to run."
)
@configured(*DATABASE)
def command(*, loaded: LoadedConfig, check: bool) -> ExitCode:
    """Run the migrations that the database still needs.

    `meterd serve` does the same when it starts; safe while another meterd runs.
    """
    return trio.run(_migrate, loaded.config, check)


async def _migrate(config: Config, check: bool) -> ExitCode:
    async with open_asyncio_thread() as portal:
        if config.database_url is not None:
            return await _at(portal, config.database_url.get_secret_value(), check)
        assert config.data_dir is not None, "the configuration names one of the two"
        async with attach_embedded_postgres(
            portal, config.data_dir, on_progress=lambda text: click.echo(text, err=True)
        ) as server:
            return await _at(portal, server.dsn, check)


async def _at(portal: AsyncioThread, dsn: str, check: bool) -> ExitCode:
    migrations = Migrations(portal, dsn)
    if check:
        pending = await migrations.pending()
        for revision in pending:
            click.echo(f"pending {revision.id}: {revision.title}")
        if not pending:
            click.echo(f"up to date at {await migrations.current()}")
        return ExitCode.FAILED if pending else ExitCode.OK
    await migrations.upgrade(click.echo)
    click.echo(f"up to date at {await migrations.current()}")
    return ExitCode.OK
