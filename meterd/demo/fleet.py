"""Agents: each runs tasks one after the other through the client library, over a real WebSocket.

Every agent keeps its own book of what it ran; at the end it is compared with the ledger.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs
import trio

from meterd.client import MeterdClientError, PlanLimitReached, Refused, Settings
from meterd.client.trio import Meterd, Task


@attrs.define
class Organization:
    """One customer on the screen: what its agents know and what the last quota said."""

    organization_id: str
    plan: str
    title: str
    key: str = attrs.field(repr=False, default="")
    agents: int = 1
    ran_ms: dict[str, int] = attrs.Factory(dict)
    """Per task, what its agent says it ran."""
    stopped: int = 0
    refused: int = 0
    quota: dict[str, object] = attrs.Factory(dict)
    running: list[Task] = attrs.Factory(list)
    acknowledged_before: int = 0
    """Milliseconds acknowledged of tasks that have ended."""

    @property
    def acknowledged_ms(self) -> int:
        """Return the agent time meterd has confirmed as durable."""
        return self.acknowledged_before + sum(task.acked_ms for task in self.running)


Tell = Callable[[Organization, str], None]


async def run_agent(
    url: str, organization: Organization, number: int, *, seed: int, tell: Tell
) -> None:
    """Run tasks of a few seconds until cancelled; a refusal is reported and tried again later."""
    chance = random.Random(f"{seed}/{organization.organization_id}/{number}")  # noqa: S311  # a show
    agent_id = f"{organization.organization_id}-agent-{number}"
    await trio.sleep(chance.uniform(0, 1.5))
    async with Meterd(url, organization.key, settings=Settings()) as client:
        while True:
            try:
                await _run_task(client, organization, agent_id, chance, tell)
            except PlanLimitReached as refusal:
                if not refusal.stopped:
                    organization.refused += 1
                    tell(organization, f"{agent_id} refused: 429 {refusal.message}")
                await trio.sleep(chance.uniform(4, 7))
            except (Refused, MeterdClientError) as error:
                tell(organization, f"{agent_id}: {error}")
                await trio.sleep(chance.uniform(2, 4))
            await trio.sleep(chance.uniform(0.1, 0.6))


async def _run_task(
    client: Meterd,
    organization: Organization,
    agent_id: str,
    chance: random.Random,
    tell: Tell,
) -> None:
    task: Task | None = None
    try:
        async with client.task(agent_id=agent_id) as task:
            organization.running.append(task)
            await trio.sleep(chance.uniform(6, 14))
            if chance.random() < 0.1:  # noqa: PLR2004  # one task in ten fails
                task.outcome = "failed"
    except PlanLimitReached as stop:
        if stop.stopped:
            organization.stopped += 1
            tell(organization, f"{agent_id} stopped while running: {stop.message}")
        raise
    finally:
        if task is not None:
            organization.running.remove(task)
            organization.ran_ms[task.task_id] = task.elapsed_ms
            organization.acknowledged_before += task.acked_ms
