"""The command line: `meterd COMMAND`, one module of this package per command.

Rule 1: a module `meterd/cli/<name>.py` with a click command called `command` is the command
`meterd <name>` (underscores become dashes); modules that begin with an underscore are not.
Rule 2: modules are imported when their command is asked for: `meterd version` loads no server,
and `meterd --help` reads what each command does from its source.
Rule 3: exit codes are decided here and nowhere else. A command returns None (0) or an ExitCode,
or raises a MeterdError; Trio's exception groups are looked into.
"""

from __future__ import annotations

import ast
import enum
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import click

from meterd import __version__
from meterd.errors import ConfigError, MeterdError, OwnedElsewhereError


class ExitCode(enum.IntEnum):
    """What the process tells its caller."""

    OK = 0
    """A clean stop, or the command did what it says."""
    FAILED = 1
    """It did not work, or a check found differences."""
    USAGE = 2
    """The options or settings are wrong; nothing was started."""
    OWNED_ELSEWHERE = 3
    """Another meterd owns the database."""


class Commands(click.Group):
    """The commands found in this package, imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Return the names of all commands, sorted."""
        names = (module.name for module in pkgutil.iter_modules(__path__))
        return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, or None when there is no such module."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command), module
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the first sentence of its help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name)) for name in self.list_commands(ctx)])


def _summary(name: str) -> str:
    """Return the first sentence of a command's help, without importing what it runs."""
    source = Path(__file__).with_name(f"{name.replace('-', '_')}.py").read_text("utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == "command":
            paragraph = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
            return paragraph.partition(". ")[0].rstrip(".")
    return ""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="meterd")
def group() -> None:
    """Meter what agents use, stop them at their plan's limit, and bill it exactly."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with an ExitCode; unexpected errors keep their traceback."""
    if not __debug__:
        refuse(
            "meterd states what it relies on as assertions: start it without -O "
            "and without PYTHONOPTIMIZE.",
            ExitCode.USAGE,
        )
    try:
        outcome = group.main(args=arguments, prog_name="meterd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE if isinstance(error, click.UsageError) else ExitCode.FAILED)
    except click.Abort:
        refuse("interrupted", ExitCode.FAILED)
    except BrokenPipeError:
        # Whoever read our output has gone (`meterd audit | head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.FAILED)
    except (MeterdError, BaseExceptionGroup) as error:
        code = exit_code_of(error)
        if code is None:
            raise
        refuse("\n".join(sorted({str(leaf) or "interrupted" for leaf in _leaves(error)})), code)
    sys.exit(outcome if isinstance(outcome, int) else ExitCode.OK)


def exit_code_of(error: BaseException) -> ExitCode | None:
    """Return the exit code for an error that was meant, or None: the traceback must be seen."""
    leaves = list(_leaves(error))
    if any(not isinstance(leaf, MeterdError | KeyboardInterrupt) for leaf in leaves):
        return None
    if any(isinstance(leaf, OwnedElsewhereError) for leaf in leaves):
        return ExitCode.OWNED_ELSEWHERE
    if any(isinstance(leaf, ConfigError) for leaf in leaves):
        return ExitCode.USAGE
    return ExitCode.FAILED


def refuse(reason: str, code: ExitCode) -> NoReturn:
    """Say on stderr why meterd stops, and exit."""
    for line in reason.splitlines():
        print(f"meterd: {line}", file=sys.stderr)
    sys.exit(code)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
