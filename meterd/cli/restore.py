"""`meterd restore`: a backup into an empty place, checked before anybody serves from it."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from meterd.adapters import postgres_dump
from meterd.adapters.postgres.audit import audit
from meterd.adapters.postgres.migrate import Migrations
from meterd.adapters.postgres.pool import open_postgres_pools
from meterd.cli import ExitCode, refuse
from meterd.cli._database import open_server
from meterd.cli._examples import examples
from meterd.cli._options import DATABASE, configured
from meterd.config import Config, LoadedConfig


@click.command(
    epilog=examples("meterd restore /var/backups/meterd.dump --data-dir /var/lib/meterd-new")
)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@configured(*DATABASE)
def command(*, loaded: LoadedConfig, file: Path) -> ExitCode:
    """Restore a backup FILE into a new data directory or an empty database, and check it.

    What is there is never overwritten. Exit code 1 when the restored books do not agree.
    """
    directory = loaded.config.data_dir
    if directory is not None and directory.exists() and any(directory.iterdir()):
        refuse(f"{directory} is not empty: name a new directory", ExitCode.USAGE)
    differences = trio.run(_restore, loaded.config, file)
    click.echo(f"restored; {differences} differences in the books")
    return ExitCode.FAILED if differences else ExitCode.OK


async def _restore(config: Config, file: Path) -> int:
    async with open_server(config, makes_new=True) as (portal, dsn):
        migrations = Migrations(portal, dsn)
        if await migrations.current() is not None:
            refuse(
                "the database has meterd's tables already: restore into an empty one",
                ExitCode.USAGE,
            )
        await postgres_dump.restore(dsn, file)
        await migrations.upgrade(lambda text: click.echo(text, err=True))
        async with open_postgres_pools(portal, dsn) as pools:
            return len((await audit(pools)).differences)
