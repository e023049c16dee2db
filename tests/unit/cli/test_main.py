"""The command line itself: finding commands, exit codes, `config` and `version`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from meterd import errors
from meterd.cli import ExitCode, exit_code_of, group, main
from meterd.cli.config import reference


ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Run where no METERD_* variable and no file of the machine is seen; restore the log."""
    import logging  # noqa: PLC0415  # only to put back what a command sets up
    import threading  # noqa: PLC0415

    for name in list(os.environ):
        if name.startswith("METERD_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook
    yield
    root.handlers[:], level, sys.excepthook, threading.excepthook = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def run(*arguments: str) -> int:
    """Return the exit code of `meterd ARGUMENTS`."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("no"), ExitCode.USAGE),
        (errors.OwnedElsewhereError("no"), ExitCode.OWNED_ELSEWHERE),
        (errors.StoreUnavailableError("start"), ExitCode.FAILED),
        (ExceptionGroup("g", [ExceptionGroup("g", [errors.OwnedElsewhereError("no")])]), 3),
        (ExceptionGroup("g", [errors.StoreUnavailableError("a"), errors.ConfigError("b")]), 2),
        (ExceptionGroup("g", [errors.ConfigError("a"), ZeroDivisionError()]), None),
        (BaseExceptionGroup("g", [KeyboardInterrupt()]), ExitCode.FAILED),
        (AssertionError(), None),
    ],
)
def test_exit_codes_come_from_the_error_however_deep_trio_wrapped_it(
    error: BaseException, code: ExitCode | None
) -> None:
    """Service managers restart on 1, and must not on 2 or 3; a bug keeps its traceback."""
    assert exit_code_of(error) == code


def test_wrong_options_and_wrong_settings_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """The two ways of bad usage look the same from outside."""
    assert run("config", "--no-such-option") == ExitCode.USAGE
    assert run("no-such-command") == ExitCode.USAGE
    assert run("config", "--task-timeout-ms", "5") == ExitCode.USAGE

    assert (
        "meterd: --task-timeout-ms must be a whole number of milliseconds"
        in capsys.readouterr().err
    )


def test_every_module_of_the_package_is_a_documented_command() -> None:
    """Adding a file adds a command; a file without one is found here and not by a user."""
    context = click.Context(group)

    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        assert command.help, name


def test_a_module_that_begins_with_an_underscore_is_no_command() -> None:
    """What commands share lives beside them."""
    assert "_options" not in group.list_commands(click.Context(group))
    assert run("-options") == ExitCode.USAGE


def test_version_names_meterd_and_the_libraries_that_matter(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bug report begins with this output."""
    assert run("version") == ExitCode.OK

    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("meterd 0.")
    assert {"trio", "hypercorn", "stripe"} <= {line.split()[0] for line in others}


def test_config_shows_values_and_sources_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is in force, and where to change it, can be pasted into a ticket."""
    monkeypatch.setenv("METERD_ADMIN_KEY", "canary" * 8)
    monkeypatch.setenv("METERD_DATABASE_URL", "postgresql://user:canary@host/db")

    assert run("config", "--json", "--takeover", "--bind", "[::1]:0") == ExitCode.OK

    output = capsys.readouterr()
    shown = json.loads(output.out)
    assert shown["bind"] == {"value": "[::1]:0", "source": "--bind"}
    assert shown["takeover"] == {"value": "true", "source": "--takeover"}
    assert shown["admin_key"] == {"value": "********", "source": "METERD_ADMIN_KEY"}
    assert shown["database_url"]["value"] == "postgresql://user:********@host/db"
    assert "canary" not in output.out + output.err


def test_the_file_can_be_named_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Containers are configured by environment alone."""
    file = tmp_path / "here.toml"
    file.write_text("mailbox_max = 7", encoding="utf-8")
    monkeypatch.setenv("METERD_CONFIG", str(file))

    assert run("config") == ExitCode.OK

    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("mailbox_max"))
    assert line.split() == ["mailbox_max", "7", str(file)]


def test_an_unknown_variable_is_warned_about_by_name_and_not_by_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt METERD_ADMIN_KEY still holds the key."""
    monkeypatch.setenv("METERD_ADMINKEY", "canary")

    assert run("config", "--log-format", "json") == ExitCode.OK

    warning = json.loads(capsys.readouterr().err)
    assert (warning["event"], warning["variable"]) == ("unknown_variable", "METERD_ADMINKEY")
    assert "canary" not in str(warning)


def test_secrets_are_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    """Everybody on a machine can read a process's command line."""
    assert run("config", "--help") == ExitCode.OK

    text = capsys.readouterr().out
    assert "--task-timeout-ms" in text
    assert not any(option in text for option in ("--admin-key", "--stripe-api-key", "--redis-url"))


def test_the_configuration_reference_is_current() -> None:
    """docs/reference/configuration.md is made by `meterd config --markdown`."""
    page = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")

    assert page == reference(), "run: meterd config --markdown > docs/reference/configuration.md"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["-O", "-m", "meterd"], {}), (["-m", "meterd"], {"PYTHONOPTIMIZE": "1"})],
)
def test_meterd_refuses_to_start_without_assertions(
    arguments: list[str], environment: dict[str, str]
) -> None:
    """Broken invariants are assertions here; without them a bug goes on billing."""
    started = subprocess.run(
        [sys.executable, *arguments, "version"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )

    assert started.returncode == ExitCode.USAGE
    assert "without -O" in started.stderr
    assert started.stdout == ""


def leaves(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    """Yield every command that does something, by what is typed."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            part = command.get_command(context, name)
            assert part is not None, name
            yield from leaves(part, (*words, name))
    else:
        yield " ".join(words), command


LEAVES = dict(leaves(group, ("meterd",)))


@pytest.mark.parametrize("typed", LEAVES)
def test_every_command_shows_examples_that_can_be_typed(typed: str) -> None:
    """At three in the morning nobody reads a grammar; a wrong example costs more than none."""
    lines = (LEAVES[typed].epilog or "").removeprefix("\b\nExamples:\n").splitlines()
    assert lines, typed
    for line in lines:
        words = [word for word in shlex.split(line) if not word.startswith("METERD_")]
        assert " ".join(words).startswith(typed), line
        arguments = words[len(typed.split()) :]
        LEAVES[typed].make_context(typed, arguments, resilient_parsing=True)


def test_a_configuration_file_that_is_missing_costs_one_line(tmp_path: Path) -> None:
    """What is wrong is said once, and not by a library as well."""
    missing = tmp_path / "none.toml"
    ran = subprocess.run(
        [sys.executable, "-m", "meterd", "config", "--config", missing],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"meterd: There is no file {missing}: correct --config.\n"


def test_nothing_is_loaded_that_the_command_does_not_need() -> None:
    """Help is read from sources; a start without Redis whose tables are new migrates nothing."""
    probe = (
        "import sys, meterd.cli as cli, click\n"
        "cli.group.get_help(click.Context(cli.group))\n"
        "print(sorted(name for name in sys.modules if name.startswith('meterd.')))\n"
        "import meterd.cli.serve\n"
        "print(sorted({'alembic', 'sqlalchemy', 'redis'} & set(sys.modules)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines() == ["['meterd.cli', 'meterd.errors']", "[]"]


def test_help_says_of_each_command_what_its_own_help_says_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The list is made from sources, and no command is missing or cut short."""
    run("--help")
    listed = " ".join(capsys.readouterr().out.split())

    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert command.help, name
        first = " ".join(command.help.partition("\n\n")[0].split()).partition(". ")[0]
        assert f"{name} {first.rstrip('.')}" in listed, name


def test_ctrl_c_is_told_in_a_word_wherever_it_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trio wraps the interrupt in groups when tasks were running: no silence, no traceback."""

    def interrupted(**_: object) -> None:
        raise BaseExceptionGroup("tasks", [BaseExceptionGroup("tasks", [KeyboardInterrupt()])])

    monkeypatch.setattr(group, "main", interrupted)

    assert run("serve") == ExitCode.FAILED
    assert capsys.readouterr().err == "meterd: interrupted\n"
