"""`meterd version`: which meterd this is, and what it runs on."""

from __future__ import annotations

import platform
from importlib.metadata import version

import click

import meterd
from meterd.cli._examples import examples


@click.command(epilog=examples("meterd version"))
def command() -> None:
    """Print the version of meterd, of Python and of the libraries that matter."""
    click.echo(f"meterd {meterd.__version__}")
    click.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for library in ("trio", "hypercorn", "quart-trio", "asyncpg", "stripe"):
        click.echo(f"{library} {version(library)}")
