"""`meterd audit`: recompute what is stored from the ledger and tell every difference.

Exit codes: 0 everything holds, 1 differences were found, 2 there is no answer (wrong options, an
unknown organization or task, a database that cannot be read).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import attrs
import click
import trio

from meterd.adapters.postgres.audit import AuditResult, Evidence, audit
from meterd.cli import ExitCode, refuse
from meterd.cli._database import open_database
from meterd.cli._examples import examples
from meterd.cli._options import DATABASE, configured
from meterd.config import Config, LoadedConfig
from meterd.core.units import rfc3339
from meterd.errors import EmbeddedPostgresError, StoreError


@attrs.frozen(kw_only=True)
class Question:
    """What to check; None means all organizations, and no task's evidence."""

    organization_id: str | None
    task_id: str | None


@click.command(
    epilog=examples(
        "meterd audit --data-dir /var/lib/meterd",
        "meterd audit --organization acme --task letter-1 --json",
    )
)
@click.option("--organization", metavar="ID", help="Check one organization only.")
@click.option("--task", metavar="ID", help="Show a task's position and its ledger rows as well.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@configured(*DATABASE)
def command(
    *, loaded: LoadedConfig, organization: str | None, task: str | None, as_json: bool
) -> ExitCode:
    """Check that rows, totals, tasks and prices agree. Changes nothing.

    Safe beside a running meterd: everything is read in one snapshot.
    """
    question = Question(organization_id=organization, task_id=task)
    try:
        found = trio.run(_ask, loaded.config, question)
    except (StoreError, EmbeddedPostgresError) as error:
        refuse(str(error), ExitCode.USAGE)
    if organization is not None and not found.organizations:
        refuse("no organization has this id", ExitCode.USAGE)
    if task is not None and not found.evidence:
        refuse("no task has this id", ExitCode.USAGE)
    click.echo(_as_json(found) if as_json else "\n".join(_lines(found)))
    return ExitCode.FAILED if found.differences else ExitCode.OK


async def _ask(config: Config, question: Question) -> AuditResult:
    async with open_database(config) as database:
        return await audit(
            database.pools, organization_id=question.organization_id, task_id=question.task_id
        )


def _as_json(found: AuditResult) -> str:
    answer: dict[str, object] = {
        "as_of": rfc3339(found.as_of_ms),
        "organizations": found.organizations,
        "differences": [attrs.asdict(difference) for difference in found.differences],
    }
    if found.evidence:
        answer["evidence"] = [{"task": e.task, "rows": e.rows} for e in found.evidence]
    return json.dumps(answer, indent=2)


def _lines(found: AuditResult) -> Iterator[str]:
    for evidence in found.evidence:
        yield from _evidence_lines(evidence)
    for difference in found.differences:
        yield (
            f"{difference.organization_id}: {difference.subject}: {difference.what} "
            f"is {difference.found}, expected {difference.expected} [{difference.check}]"
        )
    count = len(found.differences)
    yield f"{found.organizations} organizations checked, {count} differences"


def _evidence_lines(evidence: Evidence) -> Iterator[str]:
    task = evidence.task
    unbilled_ms = task["elapsed_ms"] - task["metered_ms"]
    yield (
        f"{task['organization_id']}: task {task['task_id']} of agent {task['agent_id']}: "
        f"{task['state']}, elapsed_ms {task['elapsed_ms']} = metered_ms {task['metered_ms']} "
        f"(recorded_ms {task['recorded_ms']}) + unbilled_ms {unbilled_ms}"
    )
    for row in evidence.rows:
        yield (
            f"  {row['timestamp']} {row['id']} {row['billing_period']} {row['kind']} "
            f"{row['quantity_ms']} ms, {row['quantity']} min x {row['unit_cost']} "
            f"= {row['total_cost']} USD, after {row['recorded_before_ms']} ms"
        )
