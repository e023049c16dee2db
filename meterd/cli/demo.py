"""`meterd demo`: watch agents being metered, warned, stopped and refused, then audited."""

from __future__ import annotations

import sys

import click
import trio
from rich.console import Console

from meterd.cli import ExitCode
from meterd.demo.service import DemoError
from meterd.demo.story import SECONDS_MIN, run_demo


@click.command()
@click.option(
    "--seconds",
    "duration_s",
    type=click.IntRange(min=SECONDS_MIN, max=3_600),
    default=40,
    show_default=True,
    help="How long the agents run.",
)
def command(*, duration_s: int) -> ExitCode:
    """Run the whole service with three organizations and nineteen agents, and audit the result.

    Needs nothing installed, uses a temporary directory and leaves nothing behind.
    """
    console = Console(file=sys.stdout)
    problems: list[str] = []
    is_exact = False
    try:
        is_exact = trio.run(run_demo, duration_s, console)
    except* DemoError as group:
        problems.extend(f"The demo cannot go on: {error}" for error in _leaves(group))
    except* KeyboardInterrupt:
        problems.append("Stopped.")
    for problem in problems:
        console.print(problem, markup=False)
    return ExitCode.OK if is_exact else ExitCode.FAILED


def _leaves(group: BaseExceptionGroup[DemoError]) -> list[DemoError]:
    found: list[DemoError] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
