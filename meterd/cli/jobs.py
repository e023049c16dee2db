"""`meterd jobs`: what the scheduler did, read from the database."""

from __future__ import annotations

import json

import click
import trio

from meterd.adapters.postgres.jobs import PostgresJobs
from meterd.cli._database import open_database
from meterd.cli._examples import examples
from meterd.cli._options import DATABASE, configured
from meterd.config import Config, LoadedConfig
from meterd.core.schedule import JobRecord, JobRun
from meterd.core.units import rfc3339


RUNS_SHOWN = 20


@click.command(epilog=examples("meterd jobs", "meterd jobs retention --json"))
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@configured(*DATABASE)
def command(*, loaded: LoadedConfig, name: str | None, as_json: bool) -> None:
    """Show every job with its last run, or the latest runs of one job.

    Jobs are started with POST /admin/v1/jobs/NAME/run; here nothing is changed.
    """
    records, runs = trio.run(_look, loaded.config, name)
    if as_json:
        jobs = [_record_json(record) for record in records]
        shown = (
            {"jobs": jobs} if name is None else {"jobs": jobs, "runs": list(map(_run_json, runs))}
        )
        click.echo(json.dumps(shown, indent=2))
        return
    if not records:
        click.echo("no job is known: the scheduler has not run on this database")
    for record in records:
        outcome = "never ran" if record.last_outcome is None else record.last_outcome.value
        click.echo(
            f"{record.name:<24} {outcome:<12} {_instant(record.last_run_at_ms):<26}"
            f" settled {record.settled.subject}"
            + (f"  {record.last_error}" if record.last_error else "")
        )
    for run in runs:
        click.echo(
            f"  {rfc3339(run.started_at_ms):<26} {run.outcome.value:<12} {run.trigger.value:<9}"
            f" {run.subject:<15} {run.detail_json}"
        )


async def _look(config: Config, name: str | None) -> tuple[list[JobRecord], list[JobRun]]:
    async with open_database(config) as database:
        store = PostgresJobs(database.pools)
        records = await store.all_records()
        if name is None:
            return list(records), []
        mine = [record for record in records if record.name == name]
        if not mine:
            raise click.BadParameter("there is no such job", param_hint="NAME")
        return mine, list(await store.runs(name, RUNS_SHOWN))


def _instant(at_ms: int | None) -> str:
    return "-" if at_ms is None else rfc3339(at_ms)


def _record_json(record: JobRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "settled": record.settled.subject,
        "last_run_at": None if record.last_run_at_ms is None else rfc3339(record.last_run_at_ms),
        "last_finished_at": (
            None if record.last_finished_at_ms is None else rfc3339(record.last_finished_at_ms)
        ),
        "last_outcome": None if record.last_outcome is None else record.last_outcome.value,
        "last_error": record.last_error,
    }


def _run_json(run: JobRun) -> dict[str, object]:
    return {
        "id": run.id,
        "subject": run.subject,
        "trigger": run.trigger.value,
        "tries": run.tries,
        "started_at": rfc3339(run.started_at_ms),
        "finished_at": None if run.finished_at_ms is None else rfc3339(run.finished_at_ms),
        "outcome": run.outcome.value,
        "detail": json.loads(run.detail_json),
    }
