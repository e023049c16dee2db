"""`meterd reconcile ledger` and `stripe`: hold everything stored against the ledger, and Stripe.

Exit codes: 0 the books agree (or agree again, after --rebuild), 1 they differ.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence

import attrs
import click
import trio

from meterd.adapters.clock import SystemClock
from meterd.adapters.postgres.jobs import PostgresJobs
from meterd.adapters.postgres.owner import own_database
from meterd.adapters.postgres.upkeep import PostgresUpkeep
from meterd.cli import ExitCode
from meterd.cli._database import OpenDatabase, open_database
from meterd.cli._examples import examples
from meterd.cli._options import DATABASE, configured
from meterd.cli._reconcile_stripe import stripe
from meterd.config import Config, LoadedConfig
from meterd.core.books import BookDifference, RebuiltCounters
from meterd.core.units import DAY_MS


METRICS_DAYS = 60


@click.group()
def command() -> None:
    """Check that what meterd keeps agrees, with itself and with Stripe."""


command.add_command(stripe)


@attrs.frozen(kw_only=True)
class Result:
    """What was compared, and what came of it."""

    organizations: int
    differences: Sequence[BookDifference]
    new_findings: int = 0
    rebuilt: Sequence[RebuiltCounters] = ()


@command.command(epilog=examples("meterd reconcile ledger", "meterd reconcile ledger --rebuild"))
@click.option("--dry-run", is_flag=True, help="Tell differences and store nothing.")
@click.option(
    "--rebuild",
    is_flag=True,
    help="Make counters what the ledger says. No meterd may run on the database.",
)
@click.option("--organization", metavar="ID", help="Rebuild one organization only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@configured(*DATABASE, "owner_wait_ms")
def ledger(
    *,
    loaded: LoadedConfig,
    dry_run: bool,
    rebuild: bool,
    organization: str | None,
    as_json: bool,
) -> ExitCode:
    """Compare the ledger with counters, tasks and daily metrics.

    Differences are stored as findings. The ledger itself is never changed.
    """
    if rebuild and dry_run:
        raise click.UsageError("--rebuild changes counters and --dry-run changes nothing.")
    if organization is not None and not rebuild:
        raise click.UsageError("--organization goes with --rebuild.")
    result = trio.run(_reconcile, loaded.config, dry_run, rebuild, organization)
    if as_json:
        click.echo(json.dumps(_json(result), indent=2))
    else:
        _show(result)
    return ExitCode.FAILED if result.differences else ExitCode.OK


async def _reconcile(
    config: Config, is_dry: bool, is_rebuild: bool, organization_id: str | None
) -> Result:
    clock = SystemClock()
    async with open_database(config) as database:
        if is_rebuild:
            return await _rebuild(config, database, clock, organization_id)
        return await _compare(database, clock, is_dry=is_dry)


async def _compare(database: OpenDatabase, clock: SystemClock, *, is_dry: bool) -> Result:
    upkeep = PostgresUpkeep(database.pools)
    now_ms = clock.now_ms()
    organizations, stored = await upkeep.ledger_differences()
    in_days = await upkeep.metrics_differences(now_ms - METRICS_DAYS * DAY_MS)
    differences = (*stored, *in_days)
    new = 0
    if not is_dry:
        found = [each.finding(now_ms) for each in differences]
        new = await PostgresJobs(database.pools).add_findings(found)
    return Result(organizations=organizations, differences=differences, new_findings=new)


async def _rebuild(
    config: Config, database: OpenDatabase, clock: SystemClock, organization_id: str | None
) -> Result:
    name = f"{socket.gethostname()}:{os.getpid()} reconcile"
    async with own_database(
        database.portal, database.dsn, owner=name, wait_ms=config.owner_wait_ms
    ) as owner:
        rebuilt = await PostgresUpkeep(database.pools).rebuild_counters(
            owner.epoch, organization_id=organization_id, at_ms=clock.now_ms()
        )
        after = await _compare(database, clock, is_dry=True)
    return attrs.evolve(after, rebuilt=rebuilt)


def _show(result: Result) -> None:
    for period in result.rebuilt:
        click.echo(
            f"rebuilt {period.organization_id} {period.label}: used_ms {period.wrong_used_ms} -> "
            f"{period.used_ms}, recorded_ms {period.wrong_recorded_ms} -> {period.recorded_ms}"
        )
    for each in result.differences:
        click.echo(
            f"{each.organization_id} {each.subject}: {each.what} is {each.found}, "
            f"the ledger says {each.expected}"
            + (f" (difference {each.amount})" if each.amount is not None else "")
        )
    click.echo(
        f"{result.organizations} organizations compared, {len(result.differences)} differences"
    )


def _json(result: Result) -> dict[str, object]:
    return {
        "organizations": result.organizations,
        "differences": [
            {**attrs.asdict(each), "amount": each.amount} for each in result.differences
        ],
        "new_findings": result.new_findings,
        "rebuilt": [attrs.asdict(each) for each in result.rebuilt],
    }
