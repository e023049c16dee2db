"""Options that commands share: `--config` and the settings, loaded and checked in one way.

A command decorated with `@configured("data_dir", "database_url")` accepts `--config FILE` and
those settings as options, and is called with `loaded: LoadedConfig`; `@configured()` offers every
setting that may stand on a command line. Secrets may not: anyone on the machine could read them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click
from typed_settings import Secret

from meterd.config import (
    LoadedConfig,
    load_config,
    option_of,
    setting_fields,
    variable_of,
)
from meterd.observe import log
from meterd.setting import Setting, shown


DATABASE = ("data_dir", "database_url")
"""The settings of a command that works on stored data only."""


def configured(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of these settings (of all without names) and call it `loaded`.

    Logging is set up before the command runs, with the secrets of the configuration masked.
    Errors: ConfigError before the command runs.
    """
    offered = [
        (name, setting, default)
        for name, setting, default in setting_fields()
        if setting.on_command_line and (not names or name in names)
    ]
    assert {name for name, _, _ in offered} >= set(names), names

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*, config_file: Path | None, **values: object) -> Any:
            options = {name: values.pop(name) for name, _, _ in offered}
            loaded = load_config(options, file=config_file)
            set_up_log(loaded)
            return command(loaded=loaded, **values)

        wrapped: Callable[..., Any] = run
        for name, setting, default in reversed(offered):
            wrapped = _option(name, setting, default)(wrapped)
        return click.option(
            "--config",
            "config_file",
            envvar="METERD_CONFIG",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="TOML file with settings.",
        )(wrapped)

    return decorate


def set_up_log(loaded: LoadedConfig) -> None:
    """Log as configured, mask the configured secrets, and warn about unknown variables."""
    config = loaded.config
    known = [
        text
        for name, setting, _ in setting_fields()
        if setting.is_secret
        for text in _secrets_in(getattr(config, name))
    ]
    log.configure(log_format=config.log_format, log_level=config.log_level, secrets=known)
    logger = log.get_logger("meterd.config")
    for variable in loaded.unknown_variables:
        logger.warning(
            "unknown_variable", variable=variable, advice="it names no setting; see `meterd config`"
        )


def _secrets_in(value: object) -> Iterator[str]:
    """Yield the secret texts of a setting; of a URL its password, the rest of it is none."""
    for item in value if isinstance(value, tuple) else (value,):
        if not isinstance(item, Secret):
            continue
        text = item.get_secret_value()
        if "://" not in text:
            yield text
        elif password := urlsplit(text).password:
            yield from {password, unquote(password)}


def _option(name: str, setting: Setting, default: object) -> Callable[..., Any]:
    option = option_of(name)
    written = shown(default) if isinstance(default, str | int | tuple) else ""
    text = (
        setting.doc + f" [{variable_of(name)}" + (f"; default {written}" if written else "") + "]"
    )
    if setting.is_flag:
        return click.option(f"{option}/--no-{option[2:]}", name, default=None, help=text)
    metavar = "PATH" if setting.is_path else (setting.unit.upper() or "VALUE")
    return click.option(option, name, default=None, metavar=metavar, help=text)
