"""`meterd migrate`: bring the database to this meterd's schema, or tell how far it is from it."""

from __future__ import annotations

import functools
import socket

import click
import trio

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.grants import Grants
from meterd.adapters.postgres.migrate import Migrations, assert_can_migrate
from meterd.adapters.postgres.owner import own_database
from meterd.cli import ExitCode
from meterd.cli._database import open_server
from meterd.cli._examples import examples
from meterd.cli._options import DATABASE, configured
from meterd.config import Config, LoadedConfig


@click.command(
    epilog=examples(
        "meterd migrate --check",
        "meterd migrate --grant-service meterd_service --grant-reporting meterd_reporting",
    )
)
@click.option(
    "--check", is_flag=True, help="Change nothing; exit 1 when there are migrations to run."
)
@click.option(
    "--grant-service",
    "service",
    metavar="ROLE",
    help="Then let ROLE do what `meterd serve` needs, and nothing else.",
)
@click.option(
    "--grant-reporting",
    "reporting",
    metavar="ROLE",
    help="Then let ROLE read customers' tables, one organization at a time.",
)
@configured(*DATABASE, "owner_wait_ms")
def command(
    *, loaded: LoadedConfig, check: bool, service: str | None, reporting: str | None
) -> ExitCode:
    """Run the migrations that the database still needs.

    `meterd serve` does the same when it starts, if its role may. While another meterd runs on the
    database it waits for its end, and exits with 3 after `--owner-wait-ms`.
    Grants are safe at any time; give them again after each upgrade.
    """
    if check and (service or reporting):
        raise click.UsageError("--check changes nothing: leave the grants out.")
    return trio.run(_migrate, loaded.config, check, service, reporting)


async def _migrate(
    config: Config, check: bool, service: str | None, reporting: str | None
) -> ExitCode:
    async with open_server(config) as (portal, dsn):
        if check:
            return await _check(Migrations(portal, dsn))
        await _upgrade(portal, dsn, config.owner_wait_ms)
        grants = Grants(portal, dsn)
        if service is not None:
            await grants.to_service(service)
            click.echo(f"{service} may run meterd")
        if reporting is not None:
            await grants.to_reporting(reporting)
            click.echo(f"{reporting} may read one organization at a time")
    return ExitCode.OK


async def _check(migrations: Migrations) -> ExitCode:
    pending = await migrations.pending()
    for revision in pending:
        click.echo(f"pending {revision.id}: {revision.title}")
    if not pending:
        click.echo(f"up to date at {await migrations.current()}")
    return ExitCode.FAILED if pending else ExitCode.OK


async def _upgrade(portal: AsyncioThread, dsn: str, wait_ms: int) -> None:
    migrations = Migrations(portal, dsn)
    await assert_can_migrate(migrations)
    if await migrations.pending():
        async with own_database(
            portal,
            dsn,
            owner=f"meterd migrate on {socket.gethostname()}",
            wait_ms=wait_ms,
            prepare=functools.partial(migrations.upgrade, click.echo),
        ):
            pass  # whoever holds the lock may migrate; there is nothing else to do with it
    click.echo(f"up to date at {await migrations.current()}")
