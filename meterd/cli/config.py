"""`meterd config`: what meterd would run with, and where each value comes from."""

from __future__ import annotations

import json

import click

from meterd.cli._options import configured
from meterd.config import LoadedConfig, setting_fields
from meterd.setting import shown


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@configured()
def command(*, loaded: LoadedConfig, as_json: bool) -> None:
    """Print every setting in force and its source; secrets are masked. Starts nothing."""
    rows = [
        (name, shown(getattr(loaded.config, name)), loaded.sources[name])
        for name, _, _ in setting_fields()
    ]
    if as_json:
        values = {name: {"value": value, "source": source} for name, value, source in rows}
        click.echo(json.dumps(values, indent=2))
        return
    name_width = max(len(name) for name, _, _ in rows)
    value_width = max(len(value) for _, value, _ in rows)
    for name, value, source in rows:
        click.echo(f"{name:<{name_width}}  {value:<{value_width}}  {source}")
