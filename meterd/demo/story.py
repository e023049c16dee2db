"""The story: three customers, one of them close to its limit, and an audit at the end.

The Starter's contract has so few minutes that warning, grace, stop and refusal come within the
time there is; nothing else is scaled or simulated: agents run in real time and meterd does not
know that it is a demonstration.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import httpx
import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table

from meterd.adapters.asyncio_thread import open_asyncio_thread
from meterd.adapters.embedded_postgres import attach_embedded_postgres
from meterd.adapters.postgres.pool import Connection, open_postgres_pools
from meterd.demo.fleet import Organization, Tell, run_agent
from meterd.demo.screen import Screen, seconds
from meterd.demo.service import DemoError, Operator, running_service


SETTINGS = {
    "METERD_TASK_TIMEOUT_MS": "3000",  # agents report every second: more to see
    "METERD_LOG_LEVEL": "warning",
}

SECONDS_MIN = 25
"""The shortest run in which warning, grace, stop and refusal all happen."""

STARTER_AGENTS = 5
STARTER_MINUTES = 2
"""The Starter's allowance in the demonstration: its grace is then 12 s of agent time."""

WARNING_AFTER_MS = 4_000
"""The Starter's allowance is used up so far that five agents reach 80 % after this long."""

LEDGER = """
SELECT t.task_id, t.organization_id, t.elapsed_ms, t.metered_ms,
       coalesce(sum(r.quantity_ms), 0)::bigint AS ledger_ms
FROM tasks t LEFT JOIN usage_records r USING (organization_id, task_id)
GROUP BY t.organization_id, t.task_id
"""
"""What the ledger says of every task: the sum of its rows, and what lies past a hard limit."""


@attrs.frozen(kw_only=True)
class Verdict:
    """The audit of one organization; all figures are milliseconds."""

    title: str
    tasks: int
    agents_ms: int
    ledger_ms: int
    unbilled_ms: int
    differing: int
    """Tasks whose figures do not match exactly."""


async def run_demo(duration_s: int, console: Console) -> bool:
    """Run the demonstration and return whether the audit found every millisecond.

    Errors: DemoError when the service cannot be started or answers unexpectedly.
    """
    data_dir = Path(tempfile.mkdtemp(prefix="meterd-demo-"))
    try:
        console.print("Starting meterd with its own PostgreSQL, in a temporary directory ...")
        async with running_service(
            data_dir, settings=SETTINGS, say=lambda text: console.print(f"  {text}", style="dim")
        ) as operator:
            console.print(f"meterd is ready on {operator.url}\n")
            organizations = await _create(operator)
            await _run(operator, organizations, duration_s, console)
            console.print(
                "\nThe agents have stopped. Comparing their own books with the ledger ..."
            )
            verdicts = await _audit(data_dir, organizations)
        return _show(verdicts, console)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


async def _create(operator: Operator) -> list[Organization]:
    starter = Organization("acme", "Starter, 2 min contract", "Acme", agents=STARTER_AGENTS)
    pro = Organization("globex", "Pro", "Globex", agents=6)
    enterprise = Organization("initech", "Enterprise", "Initech", agents=8)
    starter.key = await operator.create(
        "acme",
        {"name": "Acme", "plan": "starter", "contract": {"agent_minutes": STARTER_MINUTES}},
    )
    pro.key = await operator.create("globex", {"name": "Globex", "plan": "pro"})
    enterprise.key = await operator.create("initech", {"name": "Initech", "plan": "enterprise"})
    warning_ms = STARTER_MINUTES * 60_000 * 80 // 100
    earlier_ms = warning_ms - STARTER_AGENTS * WARNING_AFTER_MS
    await operator.adjust("acme", earlier_ms, "used earlier this month")
    return [starter, pro, enterprise]


async def _run(
    operator: Operator, organizations: Sequence[Organization], duration_s: int, console: Console
) -> None:
    screen = Screen(console, organizations)
    began = trio.current_time()

    def tell(organization: Organization | None, text: str) -> None:
        screen.tell(int(trio.current_time() - began), organization, text)

    async def show() -> None:
        async with trio.open_nursery() as agents:
            for organization in organizations:
                for number in range(1, organization.agents + 1):
                    agents.start_soon(_agent, operator.url, organization, number, tell)
            async with httpx.AsyncClient(base_url=operator.url, timeout=10) as http:
                while (left_s := duration_s - int(trio.current_time() - began)) > 0:
                    await _look(http, organizations, tell)
                    screen.draw(left_s)
                    await trio.sleep(0.25)
            agents.cancel_scope.cancel()

    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as screen.live:
            await show()
    else:
        await show()


async def _agent(url: str, organization: Organization, number: int, tell: Tell) -> None:
    await run_agent(url, organization, number, seed=1, tell=tell)


async def _look(http: httpx.AsyncClient, organizations: Sequence[Organization], tell: Tell) -> None:
    """Ask for every organization's quota and tell of changes of state."""
    for organization in organizations:
        answer = await http.get(
            "/v1/quota", headers={"authorization": f"Bearer {organization.key}"}
        )
        if answer.is_error:
            raise DemoError(f"meterd answered {answer.status_code} to GET /v1/quota: {answer.text}")
        before, organization.quota = organization.quota, answer.json()
        state = organization.quota["state"]
        if before and before["state"] != state:
            tell(organization, f"is now {str(state).upper()}")


async def _audit(data_dir: Path, organizations: Sequence[Organization]) -> list[Verdict]:
    """Compare, task by task, what agents say they ran with what PostgreSQL has."""

    async def rows(connection: Connection) -> list[tuple[str, str, int, int, int]]:
        return [tuple(row) for row in await connection.fetch(LEDGER)]

    async with (
        open_asyncio_thread() as portal,
        attach_embedded_postgres(portal, data_dir) as server,
        open_postgres_pools(portal, server.dsn) as pools,
    ):
        stored = {
            (organization_id, task_id): (elapsed_ms, metered_ms, ledger_ms)
            for task_id, organization_id, elapsed_ms, metered_ms, ledger_ms in await pools.read(
                "audit the demonstration", rows
            )
        }
    return [_verdict(organization, stored) for organization in organizations]


def _verdict(
    organization: Organization, stored: dict[tuple[str, str], tuple[int, int, int]]
) -> Verdict:
    ledger_ms = unbilled_ms = differing = 0
    for task_id, ran_ms in organization.ran_ms.items():
        elapsed_ms, metered_ms, booked_ms = stored.pop((organization.organization_id, task_id))
        ledger_ms += booked_ms
        unbilled_ms += elapsed_ms - metered_ms
        differing += ran_ms != booked_ms + (elapsed_ms - metered_ms)
    return Verdict(
        title=organization.title,
        tasks=len(organization.ran_ms),
        agents_ms=sum(organization.ran_ms.values()),
        ledger_ms=ledger_ms,
        unbilled_ms=unbilled_ms,
        differing=differing,
    )


def _show(verdicts: Sequence[Verdict], console: Console) -> bool:
    table = Table(title="Audit: agents' own books against the ledger", title_justify="left")
    for heading in ("organization", "tasks", "agents ran", "in the ledger", "past the limit", ""):
        table.add_column(heading, justify="left" if heading in ("organization", "") else "right")
    is_exact = True
    for verdict in verdicts:
        difference_ms = verdict.agents_ms - verdict.ledger_ms - verdict.unbilled_ms
        same = not verdict.differing and difference_ms == 0
        is_exact = is_exact and same
        table.add_row(
            verdict.title,
            str(verdict.tasks),
            f"{verdict.agents_ms:,} ms",
            f"{verdict.ledger_ms:,} ms",
            f"{verdict.unbilled_ms:,} ms",
            "exact" if same else f"DIFFERS by {difference_ms} ms in {verdict.differing} tasks",
        )
    console.print(table)
    total_ms = sum(verdict.agents_ms for verdict in verdicts)
    if is_exact:
        console.print(
            f"Every millisecond of {seconds(total_ms)} of agent time is accounted for; "
            "what ran past the hard limit is not billed."
        )
    else:
        console.print("The ledger does not match what the agents ran: this is a bug, report it.")
    return is_exact
