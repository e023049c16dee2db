"""`meterd demo`: watch agents being metered, warned, stopped and refused, then audited."""

from __future__ import annotations

import sys

import click
import trio
from rich.console import Console

from meterd.cli import ExitCode
from meterd.cli._examples import examples
from meterd.demo.month import run_month
from meterd.demo.service import DemoError
from meterd.demo.story import SECONDS_MIN, run_demo
from meterd.observe import log


SECONDS_SHOWN = 40


@click.command(epilog=examples("meterd demo --seconds 60"))
@click.option(
    "--seconds",
    "duration_s",
    type=click.IntRange(min=SECONDS_MIN, max=3_600),
    help="How long the agents run; 40 unless given.",
)
@click.option(
    "--with-billing",
    "has_billing",
    is_flag=True,
    help="A month of billing instead, in leaps of time, with a fake Stripe.",
)
def command(*, duration_s: int | None, has_billing: bool) -> ExitCode:
    """Run the whole service with three organizations and nineteen agents, and audit the result.

    Needs nothing installed, uses a temporary directory and leaves nothing behind.
    """
    if has_billing and duration_s is not None:
        raise click.UsageError("--seconds is for real time; with --with-billing time leaps.")
    console = Console(file=sys.stdout)
    problems: list[str] = []
    is_exact = False
    try:
        if has_billing:
            log.configure(log_format="console", log_level="warning")
            is_exact = trio.run(run_month, console)
        else:
            is_exact = trio.run(run_demo, duration_s or SECONDS_SHOWN, console)
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
