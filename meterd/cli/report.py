"""`meterd report`: the daily revenue report of any day, as Markdown or JSON."""

from __future__ import annotations

import json

import click
import trio

from meterd.actors.reports import day_of
from meterd.adapters.catalogue import load_catalogue
from meterd.adapters.clock import SystemClock
from meterd.bookkeeping import files_of, reports_of
from meterd.cli import ExitCode, refuse
from meterd.cli._database import open_database
from meterd.cli._examples import examples
from meterd.cli._options import DATABASE, configured
from meterd.config import Config, LoadedConfig
from meterd.core.schedule import last_whole_day_ms
from meterd.core.units import rfc3339
from meterd.reporting.figures import StoredReport


@click.command(epilog=examples("meterd report", "meterd report --date 2026-03-01 --json"))
@click.option(
    "--date", metavar="YYYY-MM-DD", help="A UTC day; the last whole one unless given. Or `today`."
)
@click.option(
    "--refresh", is_flag=True, help="Sum the day anew, make the report again and write its file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the complete data as one JSON object.")
@configured(*DATABASE, "plans", "reports_dir", "reports_git_commit")
def command(*, loaded: LoadedConfig, date: str | None, refresh: bool, as_json: bool) -> ExitCode:
    """Print the revenue report of a day: what customers pay, use, and may do next.

    A report is made once and kept: asked for again it says the same, until --refresh. Safe beside
    a running meterd.
    """
    report = trio.run(_report, loaded.config, date, refresh)
    if as_json:
        click.echo(json.dumps(json.loads(report.content_json), indent=2))
    else:
        click.echo(report.markdown, nl=False)
    return ExitCode.OK


async def _report(config: Config, date: str | None, refresh: bool) -> StoredReport:
    clock = SystemClock()
    day_ms = _day(date, clock.now_ms())
    async with open_database(config) as database:
        reports = reports_of(database.pools, load_catalogue(config.plans), clock)
        report = await (reports.make(day_ms) if refresh else reports.get(day_ms))
        if report is None:
            refuse("this day has not begun", ExitCode.USAGE)
        if refresh and day_ms <= last_whole_day_ms(clock.now_ms()):
            path = await files_of(config).write(report.day, report.markdown)
            click.echo(f"written to {path}", err=True)
        return report


def _day(date: str | None, now_ms: int) -> int:
    """Return the start of the UTC day asked for."""
    if date is None:
        return last_whole_day_ms(now_ms)
    day_ms = day_of(rfc3339(now_ms)[:10] if date == "today" else date)
    if day_ms is None:
        raise click.BadParameter("give a day as YYYY-MM-DD, or `today`", param_hint="--date")
    return day_ms
