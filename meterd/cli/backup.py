"""`meterd backup`: one file with everything, while meterd runs."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from meterd.adapters import postgres_dump
from meterd.cli import ExitCode, refuse
from meterd.cli._database import open_database
from meterd.cli._examples import examples
from meterd.cli._options import DATABASE, configured
from meterd.config import Config, LoadedConfig


@click.command(epilog=examples("meterd backup /var/backups/meterd.dump --data-dir /var/lib/meterd"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@configured(*DATABASE)
def command(*, loaded: LoadedConfig, file: Path) -> None:
    """Write a backup of the database to a new FILE, also while a meterd runs on it.

    It is a dump in PostgreSQL's custom format and holds everything, the keys' pepper included.
    """
    if file.exists():
        refuse(f"{file} exists: a backup never replaces another one", ExitCode.USAGE)
    if not file.absolute().parent.is_dir():
        refuse(f"there is no directory {file.absolute().parent}", ExitCode.USAGE)
    size = trio.run(_back_up, loaded.config, file)
    click.echo(f"{file}: {size} bytes")


async def _back_up(config: Config, file: Path) -> int:
    async with open_database(config) as database:
        return await postgres_dump.dump(database.dsn, file)
