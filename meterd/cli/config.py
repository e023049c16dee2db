"""`meterd config`: what meterd would run with, and where each value comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator

import attrs
import click

from meterd.cli._examples import examples
from meterd.cli._options import configured
from meterd.config import LoadedConfig, option_of, setting_fields, variable_of
from meterd.setting import shown


INTRODUCTION = """\
# Configuration

Every setting can stand in a TOML file: `--config FILE`, or `METERD_CONFIG`.
Each is also a variable of the environment and, secrets aside, an option of `meterd serve`.
Options override the environment, the environment overrides the file, the file the defaults.

An unknown key in the file or a value out of range refuses to start.
So do settings that contradict each other.
meterd then says what to change and exits with 2.
An unknown `METERD_*` variable is only warned about.
An empty value is refused, never taken for "not set".
Relative paths in a file are relative to that file.
Lists are TOML lists in a file, and separated by commas elsewhere.

`meterd config` prints what is in force and where each value comes from, with secrets masked.
`meterd config --markdown` prints this page.
"""


@click.command(epilog=examples("meterd config --config meterd.toml", "meterd config --json"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--markdown", is_flag=True, help="Print the reference page of all settings instead.")
@configured()
def command(*, loaded: LoadedConfig, as_json: bool, markdown: bool) -> None:
    """Print every setting in force and its source; secrets are masked. Starts nothing."""
    if markdown:
        click.echo(reference(), nl=False)
        return
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


def reference() -> str:
    """Return docs/reference/configuration.md, made from what config.py says about each setting."""
    return INTRODUCTION + "".join(_sections())


def _sections() -> Iterator[str]:
    for name, setting, default in setting_fields():
        written = "" if isinstance(default, attrs.Factory) else shown(default)  # type: ignore[arg-type]
        yield f"\n## `{name}`\n\n{setting.doc}\n\n"
        yield f"* Value: {setting.form}" + (f" {setting.unit}\n" if setting.unit else "\n")
        yield f"* Default: `{written}`\n" if written else "* Default: none\n"
        yield f"* Environment: `{variable_of(name)}`\n"
        if setting.on_command_line:
            yield f"* Option: `{option_of(name)}`\n"
        else:
            yield "* Option: none, other users of the machine could read it\n"
